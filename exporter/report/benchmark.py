"""The findings of a benchmark, as dataclasses, and how they are printed and written."""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.formats.base import OperatorTime
from exporter.report.diagnosis import WIDTH
from exporter.report.manifest import plain
from exporter.report.tables import open_table
from exporter.screen import fits_screen
from exporter.targets.turns import Turn

COLUMNS = (
    *("file", "runtime", "bytes", "batch", "threads", "load_ms", "p50_ms", "p90_ms", "p99_ms"),
    *("spread", "memory_bytes", "calls"),
)
"""Of a CSV file."""


@dataclass(frozen=True)
class Timed:
    """An artifact, called in one way.

    Attributes:
        runtime: The backend, such as ``xnnpack``.
        size: Bytes that it takes where it runs.
        turns: In the order of the rounds; those of all artifacts took turns.
    """

    file: str
    runtime: str
    size: int
    batch: int
    threads: int
    turns: tuple[Turn, ...]

    def latency(self, part: float) -> float:
        """Returns a quantile of all calls, in seconds; that of 0.5 is the median."""
        return float(np.quantile([time for turn in self.turns for time in turn.times], part))

    @property
    def how(self) -> tuple[int, int]:
        """How it was called: the batch size and the number of threads."""
        return self.batch, self.threads

    @property
    def medians(self) -> list[float]:
        """The median of each round, in seconds."""
        return [statistics.median(turn.times) for turn in self.turns]

    @property
    def spread(self) -> float:
        """Range of the medians of the rounds, as a part of their median."""
        medians = self.medians
        return (max(medians) - min(medians)) / statistics.median(medians)

    @property
    def load(self) -> float:
        """Median of the seconds from the path to the end of the first call."""
        return statistics.median(turn.load for turn in self.turns)

    @property
    def memory(self) -> int | None:
        """Median of the most bytes beyond those of the runtime; None where that is unknown."""
        known = [turn.memory for turn in self.turns if turn.memory is not None]
        return int(statistics.median(known)) if known else None

    @property
    def row(self) -> dict[str, Any]:
        """The figures of a row, by ``COLUMNS``."""
        times = (self.load, *map(self.latency, (0.5, 0.9, 0.99)))
        values = (
            *(self.file, self.runtime, self.size, *self.how),
            *(1e3 * time for time in times),
            *(self.spread, self.memory, sum(len(turn.times) for turn in self.turns)),
        )
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class Difference:
    """How much slower one artifact is than another that was called alike.

    Attributes:
        ratio: Latency of ``slow`` over that of ``fast``: the median of the rounds, 1 at least.
        noise: Such a ratio of ``control`` and the same file again: the median of the rounds.
        control: The file, the first of those that were called alike.
        agrees: Whether one of them is faster in all rounds.
    """

    fast: Timed
    slow: Timed
    ratio: float
    noise: float
    control: str
    agrees: bool

    @property
    def told_apart(self) -> bool:
        """Whether the order is the same in all rounds, and the difference larger than the noise."""
        return self.agrees and self.ratio > self.noise

    @property
    def sentence(self) -> str:
        """Why the two are not told apart."""
        order = "and their order is not the same" if not self.agrees else "in the same order"
        return (
            f"The machine is too noisy to tell {self.slow.file} from {self.fast.file}: they differ "
            f"by {self.ratio - 1:.1%}, {self.control} from itself by {self.noise - 1:.1%}, "
            f"{order} in all {len(self.slow.turns)} rounds."
        )


@fits_screen
@dataclass(frozen=True)
class Benchmark:
    """The findings of a benchmark.

    Attributes:
        timed: One entry for each artifact, batch size and number of threads.
        controls: The first artifact of each batch size and number of threads, a second time.
        skipped: Why artifacts were not timed: their runtime is not installed.
        failed: Why others were not: their runtime could not run them.
        operators: Time by kind of operator, by file; empty if it was not asked for.
        unprofiled: Why files are not among them.
        notes: What else to know, as sentences.
    """

    timed: tuple[Timed, ...]
    controls: tuple[Timed, ...]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]
    operators: Mapping[str, Sequence[OperatorTime]]
    unprofiled: Mapping[str, str]
    notes: tuple[str, ...]

    def called(self, how: tuple[int, int]) -> list[Timed]:
        """Returns what was called in one way, the fastest first."""
        alike = (timed for timed in self.timed if timed.how == how)
        return sorted(alike, key=lambda timed: timed.latency(0.5))

    @property
    def differences(self) -> list[Difference]:
        """All pairs of artifacts that were called alike."""
        found = []
        for control in self.controls:
            alike = self.called(control.how)
            original = next(timed for timed in alike if timed.file == control.file)
            noise = math.exp(statistics.median(map(abs, _logs(original, control))))
            for fast, slow in combinations(alike, 2):
                logs = _logs(fast, slow)
                ratio = math.exp(abs(statistics.median(logs)))
                agrees = len({log > 0 for log in logs}) == 1
                found.append(Difference(fast, slow, ratio, noise, control.file, agrees))
        return found


def _logs(one: Timed, other: Timed) -> list[float]:
    """Returns the logarithm of the ratio of latencies, other / one, of each round."""
    return [math.log(b / a) for a, b in zip(one.medians, other.medians, strict=True)]


def benchmark_dict(found: Benchmark) -> dict[str, Any]:
    """Returns the findings as values that JSON knows; times are in ms, a spread is a part."""
    return {
        "timed": [timed.row for timed in found.timed],
        "controls": [timed.row for timed in found.controls],
        "differences": [
            {
                "fast": each.fast.file,
                "slow": each.slow.file,
                "batch": each.fast.batch,
                "threads": each.fast.threads,
                "ratio": each.ratio,
                "noise": each.noise,
                "told_apart": each.told_apart,
            }
            for each in found.differences
        ],
        **{
            name: plain(getattr(found, name))
            for name in ("operators", "unprofiled", "skipped", "failed", "notes")
        },
    }


def csv_text(found: Benchmark) -> str:
    """Returns the table as CSV, one line for each artifact, batch size and number of threads."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(timed.row for timed in found.timed)
    return text.getvalue()


def print_benchmark(found: Benchmark, console: Console) -> None:
    """Prints the findings, in 80 columns at most, and what may be concluded from them."""
    width = min(WIDTH, console.width)
    if found.timed:
        console.print(_file_table(found), width=width)
    for how in sorted({timed.how for timed in found.timed}):
        console.print(_latency_table(_how_text(how), found.called(how)), width=width)
    for file, times in found.operators.items():
        console.print(_operator_table(file, times), width=width)
    for line in _lines(found):
        console.print(Text(line), width=width)


def _file_table(found: Benchmark) -> Table:
    title = "Artifacts; load ends with the first answer"
    table = open_table(title, ["file", "runtime"], ["bytes", "load ms"])
    first = {timed.file: timed for timed in reversed(found.timed)}
    for timed in reversed(first.values()):
        load = _milliseconds(timed.load)
        table.add_row(Text(timed.file), timed.runtime, f"{timed.size:,}", load)
    return table


def _latency_table(title: str, rows: Sequence[Timed]) -> Table:
    table = open_table(title, ["file"], ["p50 ms", "p90 ms", "p99 ms", "±", "peak MB"])
    for timed in rows:
        times = (_milliseconds(timed.latency(part)) for part in (0.5, 0.9, 0.99))
        memory = "" if timed.memory is None else f"{timed.memory / 1e6:.1f}"
        table.add_row(Text(timed.file), *times, f"{timed.spread / 2:.1%}", memory)
    return table


def _operator_table(file: str, times: Sequence[OperatorTime]) -> Table:
    table = open_table(f"Operators of {file}, in one call", ["kind"], ["count", "ms", "share"])
    total = sum(time.seconds for time in times) or 1.0
    for time in times:
        share = f"{time.seconds / total:.1%}"
        table.add_row(Text(time.kind), f"{time.count}", _milliseconds(time.seconds), share)
    return table


def _how_text(how: tuple[int, int]) -> str:
    batch, threads = how
    return f"Batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.4f}" if value < 0.01 else f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}"


def _lines(found: Benchmark) -> Iterator[str]:
    if found.timed:
        yield (
            "± is half the range of the medians of the rounds; peak MB are the most memory beyond "
            "that of the runtime itself."
        )
    if found.operators:
        yield (
            "Operators are averages of the runtimes' profilers, which count whole microseconds; "
            "those that take less seem to take nothing."
        )
    for name in ("skipped", "failed", "unprofiled"):
        for file, reason in getattr(found, name).items():
            yield f"{file}: {reason}"
    yield from found.notes
    differences = found.differences
    noisy = [each for each in differences if not each.told_apart]
    for each in noisy:
        yield f"{_how_text(each.fast.how)}: {each.sentence}"
    if len(differences) > len(noisy):
        rest = "All other" if noisy else "All"
        noise = max(each.noise for each in differences) - 1
        yield (
            f"{rest} differences are larger than the noise, and in the same order in each round; "
            f"a file differs from itself by {noise:.1%}."
        )
