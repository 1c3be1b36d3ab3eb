"""How a new run stands to an old one, as dataclasses, and how it is printed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from exporter.report.diagnosis import WIDTH
from exporter.report.manifest import plain
from exporter.report.tables import open_table
from exporter.screen import fits_screen

ROUNDING = 1e-9
"""Loss that may come from the arithmetic: 0.96 - 0.95 is more than 0.01."""


@dataclass(frozen=True)
class Figure:
    """One figure of an artifact in both runs.

    Attributes:
        name: ``size`` (bytes), ``latency`` (seconds), or the metric and the output, such as
            ``accuracy of probabilities``.
        grows: Whether it is worse the larger it is.
        old: None if the old run does not tell it; it is not judged then.
        new: None if the new run does not tell it.
        limit: The most that may be lost; None if it is not judged.
        loss: What was lost: of accuracy and agreement a difference, else a part of ``old``; below 0
            if it got better. None if one of the two is missing.
    """

    name: str
    grows: bool
    old: float | None
    new: float | None
    limit: float | None
    loss: float | None

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; what the old run alone tells has fallen behind."""
        if self.old is None or self.limit is None:
            return True
        # False of NaN, too.
        return self.loss is not None and self.loss <= self.limit + ROUNDING

    @property
    def reason(self) -> str:
        """Why the limit is not kept."""
        if self.loss is None or self.limit is None:
            return f"the new run does not tell its {self.name}"
        how = "grew by" if self.grows else "lost"
        return f"{self.name} {how} {self.loss:.2%}, at most {self.limit:.2%} allowed"


@dataclass(frozen=True)
class Pair:
    """One artifact of the old run, and the one in the new run of the same format and variant.

    Attributes:
        file: As in the old run.
        faults: Why it falls behind whatever its figures: it is missing, or was not accepted.
    """

    file: str
    format: str
    variant: str
    faults: tuple[str, ...]
    figures: tuple[Figure, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """All reasons why it falls behind; empty if it does not."""
        return (*self.faults, *(each.reason for each in self.figures if not each.passed))


@fits_screen
@dataclass(frozen=True)
class Comparison:
    """How a new run stands to an old one.

    Attributes:
        pairs: One for each artifact of the old run.
        added: Files that the new run alone has.
        notes: What else to know, as sentences.
    """

    pairs: tuple[Pair, ...]
    added: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the new run falls behind in nothing."""
        return not any(pair.reasons for pair in self.pairs)


def comparison_dict(found: Comparison) -> dict[str, Any]:
    """Returns the findings as values that JSON knows."""
    pairs = [
        {
            **plain(pair),
            "passed": not pair.reasons,
            "reasons": list(pair.reasons),
            "figures": [{**plain(each), "passed": each.passed} for each in pair.figures],
        }
        for pair in found.pairs
    ]
    return {"passed": found.passed, **plain(found), "pairs": pairs}


def print_comparison(found: Comparison, console: Console) -> None:
    """Prints the figures of both runs, in 80 columns at most, and why artifacts fall behind."""
    width = min(WIDTH, console.width)
    table = open_table("New run beside the old one", ["artifact", "figure"], ["old", "new", "+/-"])
    for pair in found.pairs:
        for each in pair.figures:
            values = (_value(each.name, value) for value in (each.old, each.new))
            change = Text(_change(each), "" if each.passed else "bold red")
            table.add_row(Text(pair.file), Text(each.name), *values, change)
    if table.rows:
        console.print(table, width=width)
    for pair in found.pairs:
        verdict = Text(f"{pair.file}: ").append(*_verdict(not pair.reasons, "passed", "FAILED"))
        console.print(verdict.append("".join(f"; {r}" for r in pair.reasons)), width=width)
    for line in _lines(found):
        console.print(Text(line), width=width)
    endings = ("The new run falls behind in nothing.", "THE NEW RUN FALLS BEHIND.")
    console.print(Text(*_verdict(found.passed, *endings)), width=width)


def _lines(found: Comparison) -> Iterable[str]:
    if found.added:
        yield f"The new run alone has {', '.join(found.added)}."
    yield from found.notes


def _verdict(passed: bool, good: str, bad: str) -> tuple[str, str]:
    """Returns the text of a verdict, and its style."""
    return (good, "green") if passed else (bad, "bold red")


def _change(figure: Figure) -> str:
    if figure.loss is None:
        return ""
    change = figure.loss if figure.grows else -figure.loss
    return f"{change + 0.0:+.2%}"  # A zero has no sign then.


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "none"
    if name == "size":
        return f"{value:,.0f}"
    if name == "latency":
        return f"{1e6 * value:,.1f} µs"
    return f"{value:.4g}" if name.startswith("mse") else f"{value:.2%}"
