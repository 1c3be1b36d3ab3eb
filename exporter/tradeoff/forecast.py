"""What a sweep would do, and how it is printed."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from exporter.report.forecast import Forecast, duration
from exporter.report.tables import open_table, print_lines
from exporter.screen import fits_screen


@fits_screen
@dataclass(frozen=True)
class SweepForecast:
    """Which trials a sweep would carry out; none is.

    Attributes:
        output: The folder that would be written.
        done: Goals of trials that are there, and are not repeated.
        missing: Goals of trials that would run, as far as they are known.
        more: The most trials beyond these, which depend on what comes of them.
        jobs: How many would run at a time.
        ray: Address of the cluster that they would run on; None if they run here.
        first: What the first of the missing would do; None if all are there, or if nothing can
            keep its limit, as searches try.
    """

    output: Path
    done: tuple[str, ...]
    missing: tuple[str, ...]
    more: int
    jobs: int
    ray: str | None
    first: Forecast | None

    @property
    def seconds(self) -> float | None:
        """Time of the trials that may run, by that of the first; None if that does not tell."""
        if self.first is None or self.ray:  # Machines of a cluster are others than this one.
            return None
        return self.first.seconds * math.ceil((len(self.missing) + self.more) / self.jobs)

    @property
    def exit_code(self) -> int:
        """That of the first trial's forecast."""
        return self.first.exit_code if self.first else 0


def print_sweep_forecast(forecast: SweepForecast, console: Console) -> None:
    """Prints the trials that would run."""
    table = open_table("Trials", ["ranks by"], ["what it would do"])
    for goals, told in ((forecast.done, "is there already"), (forecast.missing, "would run")):
        for goal in goals:
            table.add_row(goal, told)
    console.print(table)
    if forecast.more:
        print_lines(
            console, f"Trials       at most {forecast.more} more follow from what comes of these"
        )
    if forecast.seconds is not None:
        most = " at the most" if forecast.more else ""
        print_lines(
            console,
            f"Time         about {duration(forecast.seconds)}{most}, by a dry run of the first; a "
            "third or three times that may be",
        )
    failed = (each for each in (forecast.first.artifacts if forecast.first else ()) if each.error)
    print_lines(console, *(f"{each.name}: {each.error}" for each in failed))
    print_lines(
        console,
        f"\nWould write to {forecast.output}; nothing was written. Next: leave out --dry-run.",
    )
