"""Writes an output folder aside, and moves it into place at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import OutputError
from exporter.inputs import read_json
from exporter.options.groups import FLOAT32

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


@contextmanager
def staged_output(target: Path, entries: Sequence[str], *, force: bool) -> Iterator[Path]:
    """Yields an empty folder, whose content is moved to ``target`` when the block ends.

    Each entry is moved by one rename, the manifest last. If the block raises, or is interrupted,
    ``target`` stays as it was. Only ``entries`` and the entries in the manifest of a former run are
    replaced; other files in the folder are never touched.

    Args:
        target: The output folder, which need not exist.
        entries: Names that may be written.
        force: Whether existing entries may be replaced.

    Raises:
        OutputError: If the target cannot be written, or holds a former run or an entry and
            ``force`` is False.
    """
    former = check_output(target, entries, force=force)
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    staging: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=target))
        yield staging
        _publish(staging, target, former)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(
            f"The run into {str(target)!r} failed: {error.strerror or error}{where}. Nothing that "
            "was there has been changed."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for folder in created:  # From the innermost out; those that hold something stay.
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def check_output(target: Path, entries: Sequence[str], *, force: bool) -> list[str]:
    """Checks a target as ``staged_output`` does; changes nothing.

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
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"The output folder {str(target)!r} cannot be written: no permission in {existing}."
        )
    former = _entries_of(target / MANIFEST)
    present = [name for name in dict.fromkeys([*former, *entries]) if (target / name).exists()]
    if present and not force:
        what = "a former run" if former else "files that the run would write"
        raise OutputError(
            f"The output folder {str(target)!r} holds {what}, which is kept: {', '.join(present)}. "
            "Give another folder by --output, or --force to replace them."
        )
    return present


def _entries_of(manifest: Path) -> list[str]:
    """Returns the names that a former run wrote; none if the file is no manifest."""
    try:
        entries = list(read_json(manifest)["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    # Names alone: a manifest must not lead out of its folder.
    return [e for e in entries if isinstance(e, str) and e not in {"", ".."} and Path(e).name == e]


def _publish(staging: Path, target: Path, former: Sequence[str]) -> None:
    # The manifest comes last, because a folder with a manifest is a complete run.
    entries = sorted((e.name for e in staging.iterdir()), key=lambda name: (name == MANIFEST, name))
    aside = Path(tempfile.mkdtemp(prefix=".former-", dir=target))
    moves = [(target / name, aside / name) for name in former if (target / name).exists()]
    moves += [(staging / name, target / name) for name in entries]
    moved: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            source.rename(destination)
            moved.append((source, destination))
    except BaseException as error:
        try:
            for source, destination in reversed(moved):
                destination.rename(source)
        except OSError:
            raise OutputError(
                f"The run into {str(target)!r} failed, and what was there could not be put back. "
                f"It is kept in {aside}."
            ) from error
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def artifact_name(fmt: "Format", variant: str = FLOAT32) -> str:
    """Returns the name of an artifact in the output folder."""
    marker = "" if variant == FLOAT32 else f"-{variant}"
    return f"model{marker}{fmt.suffix}" if fmt.suffix else f"{fmt.name}{marker}"
