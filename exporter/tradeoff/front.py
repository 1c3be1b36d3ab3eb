"""The artifacts that are worth choosing among many: Pareto front, knee and choice within limits."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.data.metrics import Metric
from exporter.report.results import LATENCY_NOISE
from exporter.screen import fits_screen

UNCOMPRESSED = "rank none"


@fits_screen
@dataclass(frozen=True)
class Point:
    """An artifact of a sweep.

    Attributes:
        goal: What the ranks of its trial were chosen by, such as ``rank 16``; ``UNCOMPRESSED`` is
            the network as it was.
        format: Name of its format.
        variant: Name of its numeric variant.
        trial: Folder of its trial.
        path: The artifact; None for the uncompressed network, which no trial keeps.
        size: Bytes.
        latency: Median seconds of a call; None if it was not measured.
        loss: What its worst output lost against the baseline on validation data, by which it is
            chosen, or on test data if there are no others; see ``Standing.loss``.
        test_loss: The same on test data, which no choice has seen.
        metric: Of its first labelled output, on test data; None without labels.
        macs: Multiply-accumulates of a sample.
        instructions: Of a call on the target; None if they were not counted.
    """

    goal: str
    format: str
    variant: str
    trial: str
    path: str | None
    size: int
    latency: float | None
    loss: float
    test_loss: float
    metric: Metric | None
    macs: int
    instructions: float | None = None

    def beats(self, other: "Point") -> bool:
        """Tells whether it is worse in nothing and better in something.

        Latencies that timing cannot tell apart are equal. One that was not measured never decides.
        """
        own, its = self.latency, other.latency
        if own is None or its is None:
            own = its = 0.0
        no_worse = (
            self.size <= other.size and self.loss <= other.loss and own <= LATENCY_NOISE * its
        )
        better = self.size < other.size or self.loss < other.loss or LATENCY_NOISE * own < its
        return no_worse and better


@fits_screen
@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        points: All artifacts that were accepted, and the uncompressed network in their variants.
        front: Those that no other beats, from the smallest to the largest.
        chosen: The best within the limits; without limits the knee of the front; None if there is
            none.
        command: What exports the chosen one again; None without one.
        rejected: By goal, format and variant of artifacts that were not accepted.
        failures: By goal, why a trial failed.
        kept: How many trials had been finished before.
        output: Folder of the trials and the tables.
        best: What the chosen one is the best in, if that was asked for.
        parquet: Whether the table is written as Parquet as well.
    """

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    chosen: Point | None
    command: str | None
    rejected: Mapping[str, Sequence[str]]
    failures: Mapping[str, str]
    kept: int
    output: Path
    best: str | None = None
    parquet: bool = False

    @property
    def neighbours(self) -> dict[str, Point]:
        """The next smaller, and the next better artifact beside the chosen one, as far as known."""
        own = self.chosen
        if own is None:
            return {}
        smaller = [point for point in self.front if point.size < own.size]
        better = [point for point in self.front if point.loss < own.loss]
        found = {
            "Smaller": max(smaller, key=lambda point: point.size, default=None),
            "Better": min(better, key=lambda point: point.size, default=None),
        }
        return {told: point for told, point in found.items() if point is not None}


FIGURES: Mapping[str, Callable[[Point], float | None]] = {
    "size": lambda point: point.size,
    "latency": lambda point: point.latency,
    "macs": lambda point: point.macs,
    "instructions": lambda point: point.instructions,
    "accuracy": lambda point: point.loss,
}
"""What a point may be the best in; the least figure is the best one."""


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats, from the smallest to the largest."""
    front = [point for point in points if not any(other.beats(point) for other in points)]
    return sorted(front, key=lambda point: (point.size, point.loss))


def knee(front: Sequence[Point]) -> Point | None:
    """Returns the point beyond which bytes buy little: the one farthest below the chord.

    The chord joins the smallest point and the one that loses least, over the logarithm of the size,
    both axes scaled from 0 to 1 ("Finding a 'Kneedle' in a Haystack", Satopaa et al., 2011). None
    of an empty front; of two points or of a straight front, the one that loses least.
    """
    if not front:
        return None
    best = min(front, key=lambda point: (point.loss, point.size))
    smallest = min(front, key=lambda point: (point.size, point.loss))
    width = math.log(best.size / smallest.size)
    height = smallest.loss - best.loss
    if not width > 0 or not 0 < height < math.inf:
        return best

    def depth(point: Point) -> float:
        along = math.log(point.size / smallest.size) / width
        return 1 - along - (point.loss - best.loss) / height

    deepest = max(front, key=depth)
    return deepest if depth(deepest) > 1e-9 else best


def choose(
    points: Sequence[Point],
    *,
    max_size: float | None = None,
    max_latency: float | None = None,
    max_drop: float | None = None,
    best: str | None = None,
) -> Point | None:
    """Returns the best point within limits, each of bytes, seconds or loss; None if none is.

    ``best`` is one of ``FIGURES``. Without it, with a limit of the loss, it is the smallest,
    otherwise the one that loses least; without limits, the knee of the front.
    """
    limits: list[tuple[float | None, Callable[[Point], float | None]]] = [
        (max_size, lambda point: point.size),
        (max_latency, lambda point: point.latency),
        (max_drop, lambda point: point.loss),
    ]
    kept = list(points)
    for limit, figure in limits:
        if limit is not None:
            kept = [p for p in kept if (value := figure(p)) is not None and value <= limit]
    if best is not None:
        wanted = FIGURES[best]
        known = [(value, p.loss, p.size, p) for p in kept if (value := wanted(p)) is not None]
        return min(known, key=lambda each: each[:3], default=(None,))[-1]
    if all(limit is None for limit, _ in limits):
        return knee(pareto_front(kept))
    if max_drop is not None:
        return min(kept, key=lambda point: (point.size, point.loss), default=None)
    return min(kept, key=lambda point: (point.loss, point.size), default=None)
