"""What a run would do, as dataclasses, and how it is printed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from exporter.graph.channels import ChannelPlan
from exporter.lowrank.ranks.policy import RankPlan
from exporter.report.console import channel_table, layer_table
from exporter.report.results import LayerReport, Totals
from exporter.report.tables import open_table
from exporter.screen import fits_screen

Certainty = Literal["planned", "about", "at most"]

_SIZES = {
    "planned": "bytes, expected",
    "about": "bytes, about",
    "at most": "bytes, at most",
}


@dataclass(frozen=True)
class ArtifactForecast:
    """An artifact that would be written.

    Attributes:
        name: Its name in the output folder.
        size: Bytes of an artifact of the same shapes with random weights; None if the model does
            not convert.
        error: Why it does not.
    """

    format: str
    variant: str
    name: str
    size: int | None
    error: str | None = None


@fits_screen
@dataclass(frozen=True)
class Forecast:
    """What a run would do; nothing of it is done.

    Attributes:
        output: The folder that would be written.
        replaced: Names in it that would be replaced.
        plan: The ranks that sizes are computed for.
        certainty: Whether the run will take these ranks (``planned``), others of about the same
            figures (``about``), or lower ones (``at most``).
        decided_by: What decides the ranks.
        before: Figures of the model as it is.
        after: Figures at the ranks of the plan.
        artifacts: In order.
        seconds: Time of the run, by the order of magnitude.
        memory: Estimated peak of the process, in bytes; None if it cannot be told on this system.
        free_memory: Bytes that are free now; None if that is unknown.
        channels: The channels that a few samples have removed, by group.
    """

    model_name: str
    output: Path
    replaced: tuple[str, ...]
    plan: RankPlan
    certainty: Certainty
    decided_by: str
    before: Totals
    after: Totals
    artifacts: tuple[ArtifactForecast, ...]
    seconds: float
    memory: int | None
    free_memory: int | None
    channels: tuple[ChannelPlan, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: all artifacts convert; 3: one does not."""
        return 3 if any(each.error for each in self.artifacts) else 0


def print_forecast(forecast: Forecast, console: Console) -> None:
    """Prints what a run would do."""
    if forecast.channels:
        console.print(channel_table(forecast.channels))
    if forecast.certainty == "planned":
        console.print(layer_table(map(LayerReport, forecast.plan.layers)))
    table = open_table("Artifacts", ["artifact", "variant"], [_SIZES[forecast.certainty]])
    for each in forecast.artifacts:
        size = Text("does not convert", "red") if each.size is None else f"{each.size:,}"
        table.add_row(each.name, each.variant, size)
    if forecast.artifacts:
        console.print(table)
    for line in _lines(forecast):
        console.print(Text(line), soft_wrap=True)


def _lines(forecast: Forecast) -> Iterable[str]:
    before, after, word = forecast.before, forecast.after, forecast.certainty
    sign = "" if word == "planned" else f"{word} "
    yield from (f"{each.name}: {each.error}" for each in forecast.artifacts if each.error)
    yield f"Ranks        are decided by {forecast.decided_by}"
    yield (
        f"Model        {forecast.model_name}: {before.params:,} -> {sign}{after.params:,} "
        f"parameters, {before.macs:,} -> {sign}{after.macs:,} MACs"
    )
    if forecast.artifacts:
        yield "Sizes        of artifacts of these shapes with random weights, exported and removed"
    measured = "this export and of one batch" if forecast.artifacts else "one batch"
    yield (
        f"Time         about {duration(forecast.seconds)}, by the time of {measured}; a third or "
        "three times that may be"
    )
    if forecast.memory is not None:
        free = forecast.free_memory
        beside = "" if free is None else f" of {free / 1e9:.1f} GB that are free"
        yield (
            f"Memory       about {forecast.memory / 1e9:.1f} GB{beside}: what this took, and what "
            "calibration and training add"
        )
        if free is not None and free < forecast.memory:
            yield "Warning: the run may need more memory than is free; --calibration lowers it."
    if forecast.replaced:
        yield f"Would replace in {forecast.output}: {', '.join(forecast.replaced)}"
    yield f"\nWould write to {forecast.output}; nothing was written. Next: leave out --dry-run."


def duration(seconds: float) -> str:
    """Tells a time in one unit, rounded as its uncertainty has it."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
