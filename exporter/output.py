"""Writes an output folder aside, and moves it into place at the end."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.disk import (
    disk_error,
    folders_named,
    owned,
    remove_abandoned,
    scratch_folder,
    sync,
    temporary,
)
from exporter.errors import DiskError, OutputError
from exporter.inputs import read_json
from exporter.options.groups import FLOAT32
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.formats.base import Format

MANIFEST = "manifest.json"
REJECTED = "rejected"
UNCOMPRESSED = "uncompressed"

ARTIFACTS = Path("artifacts")
CACHE = ARTIFACTS / "cache"
BASELINE_FILE = "baseline.keras"
COMPRESSED_FILE = "compressed.keras"
PLAN_FILE = "compressed.plan.json"
TRUNCATED_FILE = "truncated.keras"
UPDATED_FILE = "updated.keras"
CURVES_FILE = "training.png"
COSTS_FILE = "costs.json"
REFERENCE_FILE = "reference.npz"
RECIPE_FILE = "recipe.yaml"
PAGE_FILE = "report.html"
TEXT_FILE = "report.md"
PICTURES_FILE = "report.npz"
FIGURES = "report_figures"
REPORT_FILES = (PAGE_FILE, TEXT_FILE, PICTURES_FILE, FIGURES)
"""What the report of a run is made of."""

_STAGING = ".staging-"
_JOURNAL = ".journal"
_FORMER = ".former"


@contextmanager
def staged_output(
    target: Path,
    entries: Sequence[str],
    *,
    force: bool,
    whole: bool = True,
    progress: Progress | None = None,
) -> Iterator[Path]:
    """Yields an empty folder, whose content is moved to ``target`` when the block ends.

    Each entry is moved by one rename, the manifest last. If the block raises, or is interrupted,
    ``target`` stays as it was. If the process dies while entries are moved, the next run into the
    folder, or ``finish_publication``, moves the rest. Only ``entries`` and the entries in the
    manifest of a former run are replaced; other files in the folder are never touched. No other
    run can write to the folder meanwhile.

    Args:
        target: The output folder, which need not exist.
        entries: Names that may be written.
        force: Whether existing entries may be replaced.
        whole: Whether a former run is replaced with all its entries; False replaces what is written
            anew in it, and leaves the rest.
        progress: Is told of an interrupted publication that was finished.

    Raises:
        OutputError: If the target cannot be written, another run writes to it, or it holds a former
            run or an entry and ``force`` is False.
    """
    check_output(target, entries, force=force, whole=whole, progress=progress)
    for parent in (temporary(), CACHE, *CACHE.glob("*/")):
        remove_abandoned(parent)
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with alone_in(target) as alone:
            try:
                _tidy(target, alone, progress)
                former = _replaced(target, entries, force=force, whole=whole)
                yield from _staged(target, former)
            finally:
                for folder in created:  # From the innermost out; those that hold something stay.
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
    except Exception as error:
        full = disk_error(error, target, CACHE)
        if full is None and not isinstance(error, OSError):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        reason = f"{full}" if full else f"{getattr(error, 'strerror', '') or error}{where}."
        raise (DiskError if full else OutputError)(
            f"The run into {str(target)!r} failed: {reason} Nothing that was there has been "
            "changed."
        ) from error


def check_output(
    target: Path,
    entries: Sequence[str],
    *,
    force: bool,
    whole: bool = True,
    progress: Progress | None = None,
) -> list[str]:
    """Checks a target as ``staged_output`` does.

    Changes nothing, but for what runs that were killed have left.

    Returns:
        The names in the target that would be replaced.

    Raises:
        OutputError: If ``staged_output`` would refuse the target.
    """
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    if not existing.is_dir():
        raise OutputError(
            f"The output {str(target)!r} must be a folder. Received: the file {str(existing)!r}."
        )
    try:
        with scratch_folder(existing):  # Permissions do not tell all: root has them in /proc.
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder {str(target)!r} cannot be written: no folder can be made in "
            f"{existing} ({error.strerror})."
        ) from error
    if existing != target:
        return []
    with alone_in(target) as alone:
        _tidy(target, alone, progress)
    return _replaced(target, entries, force=force, whole=whole)


def finish_publication(target: Path, progress: Progress | None = None) -> None:
    """Finishes what a run was publishing when it was killed, if there is any such thing.

    Raises:
        OutputError: If that cannot be done.
    """
    if not _journals(target):
        return
    if not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(
            f"A run was killed while it moved its files into {str(target)!r}, which cannot be "
            "written, so that this cannot be finished. Let the folder be written, or run again."
        )
    with alone_in(target) as alone:
        _tidy(target, alone, progress)


@contextmanager
def alone_in(target: Path) -> Iterator[bool]:
    """Keeps other runs out of a folder; yields whether that is possible.

    Raises:
        OutputError: If another run is in it.
    """
    with ExitStack() as stack:
        try:
            alone = stack.enter_context(owned(target))
        except BlockingIOError as error:
            raise OutputError(
                f"Another run is writing to the output folder {str(target)!r}. Wait for it to end, "
                "or give another folder by --output."
            ) from error
        yield alone


def _journals(target: Path) -> list[Path]:
    folders = folders_named(target, _STAGING)
    return [folder for folder in folders if (folder / _JOURNAL).exists()]


def _tidy(target: Path, alone: bool, progress: Progress | None) -> None:
    """Finishes the publication of a run that was killed, and removes what such runs left."""
    for staging in _journals(target):
        try:
            journal = json.loads((staging / _JOURNAL).read_text())
            for source, destination in _moves(staging, target, _names(journal["former"])):
                source.rename(destination)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"A run was killed while it moved its files into {str(target)!r}, and the rest in "
                f"{str(staging)!r} cannot be moved: {error}. Move or remove that folder."
            ) from error
        shutil.rmtree(staging, ignore_errors=True)
        if progress is not None:
            progress.note(
                f"A run was killed while it moved its files into {target}: the move is finished now"
            )
    for staging in folders_named(target, _STAGING) if alone else ():
        shutil.rmtree(staging, ignore_errors=True)


def _replaced(target: Path, entries: Sequence[str], *, force: bool, whole: bool) -> list[str]:
    """Returns the names that would be replaced; raises OutputError if they may not be."""
    former = entries_of(target / MANIFEST) if whole else []
    present = [name for name in dict.fromkeys([*former, *entries]) if (target / name).exists()]
    if present and not force:
        what = "a former run" if former else "files that the run would write"
        raise OutputError(
            f"The output folder {str(target)!r} holds {what}, which is kept: {', '.join(present)}. "
            "Give another folder by --output, or --force to replace them."
        )
    return present


def entries_of(manifest: Path) -> list[str]:
    """Returns the names that a former run wrote; none if the file is no manifest."""
    try:
        return _names(read_json(manifest)["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _names(entries: Iterable[object]) -> list[str]:
    # Names alone: a manifest must not lead out of its folder.
    return [e for e in entries if isinstance(e, str) and e not in {"", ".."} and Path(e).name == e]


def _staged(target: Path, former: Sequence[str]) -> Iterator[Path]:
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target))
    journal = staging / _JOURNAL
    try:
        yield staging
        _publish(staging, target, former)
        journal.unlink()
    finally:
        # With a journal, it holds what a later run must put in place.
        if not journal.exists():
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, target: Path, former: Sequence[str]) -> None:
    """Moves former entries out and new ones in, or leaves all as it was.

    The journal is what makes it happen: from then on, whoever comes later finishes the moves.
    """
    (staging / _FORMER).mkdir()
    journal, unfinished = staging / _JOURNAL, staging / f"{_JOURNAL}-unfinished"
    unfinished.write_text(json.dumps({"former": list(former)}))
    sync(staging)
    moved: list[tuple[Path, Path]] = []
    try:
        unfinished.replace(journal)
        sync(journal)
        for source, destination in _moves(staging, target, former):
            source.rename(destination)
            moved.append((source, destination))
    except BaseException as error:
        try:
            for source, destination in reversed(moved):
                destination.rename(source)
        except OSError:
            raise OutputError(
                f"The run into {str(target)!r} failed, and what was there could not be put back. "
                f"It is kept in {staging / _FORMER}; the next run, or verify, puts the new files "
                "in its place."
            ) from error
        journal.unlink(missing_ok=True)
        raise


def _moves(staging: Path, target: Path, former: Sequence[str]) -> list[tuple[Path, Path]]:
    """Lists the moves of a publication that are still to be made.

    A folder with a manifest is a complete run: the former one goes first, the new one comes last.
    """
    own = {_FORMER, _JOURNAL, f"{_JOURNAL}-unfinished"}
    entries = {path.name for path in staging.iterdir()} - own
    aside = staging / _FORMER
    out = [
        (target / name, aside / name)
        for name in sorted(former, key=lambda name: (name != MANIFEST, name))
        # What has been moved out may have been replaced already.
        if os.path.lexists(target / name) and not os.path.lexists(aside / name)
    ]
    new = sorted(entries, key=lambda name: (name == MANIFEST, name))
    return out + [(staging / name, target / name) for name in new]


def artifact_name(fmt: "Format", variant: str = FLOAT32) -> str:
    """Returns the name of an artifact in the output folder."""
    marker = "" if variant == FLOAT32 else f"-{variant}"
    return f"model{marker}{fmt.suffix}" if fmt.suffix else f"{fmt.name}{marker}"
