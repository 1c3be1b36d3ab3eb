"""``benchmark``: times artifacts in turns, whoever made them."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporter.commands.verify import kind_of
from exporter.disk import replace_text
from exporter.errors import InputError, OutputError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import Format, OperatorTime
from exporter.inputs import checked_path
from exporter.isolation import ChildError
from exporter.options.checks import Timing
from exporter.options.groups import Source
from exporter.options.size import Size
from exporter.output import COMPRESSED_FILE, REJECTED, UNCOMPRESSED
from exporter.progress import Logged, Progress
from exporter.report.benchmark import COLUMNS, Benchmark, Timed, csv_text
from exporter.targets.turns import Case, Look, Turn, look_at, measure_turn, profile

ROUNDS = 7
"""That all of so many have one order is chance once in 64 times."""

_NOT_INSTALLED = "No module named"


@dataclass
class _Running:
    """A case, and what its turns measured so far."""

    file: str
    case: Case
    turns: list[Turn] = field(default_factory=list)


def benchmark(
    files: str | Path | Sequence[str | Path],
    *,
    batch: int | None = None,
    threads: tuple[int, ...] = (1,),
    size: Size | None = None,
    operators: bool = False,
    csv: str | Path | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Times artifacts in turns in their runtimes, whoever made them, on random inputs.

    In each round, each artifact is opened and called for a moment in a process of its own. The
    first one takes part twice, so that differences can be held against that of a file from itself.

    Args:
        files: Artifacts of any format, or folders with some, such as that of a run, whose
            uncompressed alternatives are timed as well.
        batch: A batch size to time beside 1; artifacts that take one size alone are timed at that.
        threads: Numbers of threads.
        size: Sizes of the axes, beside the batch, that artifacts leave free.
        operators: Whether to profile each artifact by kind of operator.
        csv: A file to write the table to.
        progress: Is told what goes on; by default it is logged.

    Raises:
        InputError: If a path is no artifact, cannot be read, or has free axes without a size; or if
            no runtime is installed that could run one.
        OutputError: If ``csv`` cannot be written, or is a file of something else.
    """
    timing = Timing(batch=batch, threads=threads, operators=operators)
    size = Source(size=size).size
    table = None if csv is None else _checked_csv(Path(csv))
    artifacts = _artifacts([files] if isinstance(files, (str, Path)) else files)
    looks, skipped = _look_at_all(artifacts, size)
    running = [
        _Running(name, Case(fmt, path, samples, count, size if looks[name].free else None))
        for name, (fmt, path) in artifacts.items()
        if name in looks
        for count in (timing.threads if fmt.threaded else (1,))
        for samples in _batches(looks[name], timing)
    ]
    controls, failed = _take_turns(running, progress or Logged())
    timed, again = (
        tuple(_timed(each, looks[each.file]) for each in part if each.file not in failed)
        for part in (running, controls)
    )
    found, unprofiled = _profile_all(running, failed) if timing.operators else ({}, {})
    notes = tuple(_notes(looks, timing))
    result = Benchmark(timed, again, skipped, failed, found, unprofiled, notes)
    if table is not None:
        replace_text(table, csv_text(result))
    return result


def _artifacts(given: Sequence[str | Path]) -> dict[str, tuple[Format, Path]]:
    """Finds the artifacts that paths lead to, by the names that tell them apart."""
    names: dict[Path, str] = {}
    for path in map(Path, given):
        checked_path(str(path))
        if path.is_dir() and not _recognized(path):
            entries = sorted([*path.iterdir(), *(path / UNCOMPRESSED).glob("*")])
            inside = {e: e.relative_to(path).as_posix() for e in entries if _recognized(e)}
            if not inside:
                raise InputError(
                    f"A folder must hold an artifact of the formats {', '.join(FORMATS)}. "
                    f"Received: {str(path)!r}. {_instead_of(path)}"
                )
            names |= inside
        else:
            names[path] = path.name
    if not names:
        raise InputError("benchmark needs one artifact at least. Received: none.")
    known = list(names.values())
    return {
        name if known.count(name) == 1 else str(path): (kind_of(path)[0], path)
        for path, name in names.items()
    }


def _instead_of(folder: Path) -> str:
    """Tells what to give instead of a folder without artifacts."""
    if (rejected := folder / REJECTED).is_dir():
        return f"No artifact of that run has passed: give {rejected} to time them all the same."
    if (model := folder / COMPRESSED_FILE).is_file():
        return f"It holds a Keras model: exporter export {model} makes artifacts of it."
    return "Give the folder of a run, or files."


def _recognized(path: Path) -> bool:
    return any(fmt.recognizes(path) for fmt in FORMATS.values())


def _look_at_all(
    artifacts: Mapping[str, tuple[Format, Path]], size: Size | None
) -> tuple[dict[str, Look], dict[str, str]]:
    """Looks at all artifacts before any is timed; returns why the others are skipped as well."""
    looks: dict[str, Look] = {}
    skipped: dict[str, str] = {}
    for name, (fmt, path) in artifacts.items():
        if fmt.extra.missing:
            skipped[name] = f"skipped, for it needs the extra {fmt.extra.name!r}"
            continue
        try:
            looks[name] = look_at(fmt, path, size)
        except ChildError as error:
            if _NOT_INSTALLED not in str(error):
                raise InputError(
                    f"{str(path)!r} cannot be read as {fmt.name}: {error}. Give a file that its "
                    "runtime takes."
                ) from error
            skipped[name] = f"skipped, for its runtime is not installed: {error}"
    if not looks:
        told = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise InputError(f"No artifact can be timed here. {told}. Run: exporter doctor")
    if size is not None and not any(look.free for look in looks.values()):
        raise RecipeError(
            "size fixes axes that artifacts leave free, and these leave none but the batch. "
            f"Leave size out. Received: {size}."
        )
    return looks, skipped


def _batches(look: Look, timing: Timing) -> list[int]:
    return [look.batch] if look.batch else sorted({1, timing.batch or 1})


def _take_turns(
    running: Sequence[_Running], progress: Progress
) -> tuple[list[_Running], dict[str, str]]:
    """Measures all in turns; returns the controls, and why files failed, by name."""
    controls: dict[tuple[int, int], _Running] = {}
    failed: dict[str, str] = {}
    with progress.track("Timing in turns", ROUNDS) as advance:
        for number in range(ROUNDS):
            advance(number, f"round {number + 1}")
            everyone = [*running, *controls.values()]
            shift = number % len(everyone)  # Nobody always follows the same one.
            for each in [*everyone[shift:], *everyone[:shift]]:
                _take_turn(each, failed)
            if number == 0:
                for each in (each for each in running if each.turns):
                    key = (each.case.batch, each.case.threads)
                    controls.setdefault(key, _Running(each.file, each.case))
                for control in controls.values():
                    _take_turn(control, failed)
        advance(ROUNDS, "done")
    return list(controls.values()), failed


def _take_turn(each: _Running, failed: dict[str, str]) -> None:
    if each.file in failed:
        return
    try:
        each.turns.append(measure_turn(each.case))
    except ChildError as error:
        failed[each.file] = f"it cannot be run: {error}"


def _timed(each: _Running, look: Look) -> Timed:
    case = each.case
    runtime = case.fmt.backends[0]
    return Timed(each.file, runtime, look.size, case.batch, case.threads, tuple(each.turns))


def _profile_all(
    running: Sequence[_Running], failed: Collection[str]
) -> tuple[dict[str, list[OperatorTime]], dict[str, str]]:
    """Profiles each file as it is called first; returns why others have no profile as well."""
    found: dict[str, list[OperatorTime]] = {}
    without: dict[str, str] = {}
    for each in running:
        if each.file in {*failed, *found, *without}:
            continue
        try:
            found[each.file] = profile(each.case)
        except ChildError as error:
            told = str(error).removeprefix("ConversionError: ")
            without[each.file] = f"no time by operator. {told}"
    return found, without


def _notes(looks: Mapping[str, Look], timing: Timing) -> Iterator[str]:
    for name, look in looks.items():
        if look.batch and {look.batch} != {1, timing.batch or 1}:
            yield f"{name} takes batches of {look.batch} alone."
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if max(timing.threads) > cores:
        yield f"{max(timing.threads)} threads share the {cores} cores of this machine."


def _checked_csv(path: Path) -> Path:
    """Refuses a path that no table can be written to, or that would cost a file of another kind."""
    checked_path(str(path))
    if not os.access(path.parent, os.W_OK) or not path.parent.is_dir() or path.is_dir():
        raise OutputError(
            f"csv must be a file in a folder that can be written to. Received: {str(path)!r}."
        )
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline().strip() != ",".join(COLUMNS):
                raise OutputError(
                    "csv replaces former tables of benchmark alone. Received: "
                    f"{str(path)!r}, which is another file. Give another name, or move it."
                )
    return path
