"""Closes in on the artifact that costs least within a loss, trial by trial."""

import math
from collections.abc import Callable, Sequence

from exporter.tradeoff.front import UNCOMPRESSED, Point

FIRST, LEAST = 0.2, 0.002
"""Parts of the parameters or multiply-accumulates: of the first trial, and the least of all."""

CLOSE = 1.1
"""Ratio of a part that is within the loss to one that is not, at which no more is to be gained."""

Figure = Callable[[Point], float | None]


class Bisection:
    """Proposes budgets, each a part of the network, whose artifacts in all variants are tried.

    Every variant loses more the smaller the budget is, and each has a least budget of its own. The
    next trial halves, on a logarithmic scale, what is left open for the variant that promises the
    least cost there, as long as that would be the best so far.
    """

    def __init__(self, figure: Figure, max_drop: float, first: float = FIRST) -> None:
        """Begins at a part of the network; ``figure`` is what is to be least."""
        self._figure, self._max_drop, self._first = figure, max_drop, first
        self._tried: dict[float, Sequence[Point]] = {}

    def ask(self) -> float | None:
        """Returns the part of the next trial; None if no trial would gain much."""
        proposed = self._first if not self._tried else self._next()
        if proposed is not None:
            self._tried[proposed] = ()  # Until it is told, nothing counts as kept there.
        return proposed

    def tell(self, part: float, points: Sequence[Point]) -> None:
        """Takes the artifacts of a trial; none if it failed."""
        self._tried[part] = points

    @property
    def best_part(self) -> float:
        """The part of the best compressed artifact so far; the first one if none is good enough."""
        known = (each.items() for each in self._costs_within().values())
        found = [(cost, part) for items in known for part, cost in items if part < 1]
        return min(found, default=(0.0, self._first))[1]

    def _next(self) -> float | None:
        cost = self._costs_within()
        best = min((min(each.values()) for each in cost.values()), default=math.inf)
        open_parts = []
        for within in cost.values():
            least = min(within)
            below = max((part for part in self._tried if part < least), default=LEAST)
            middle = math.sqrt(below * least)
            promised = within[least] * middle / least
            if least / below > CLOSE and promised < best:
                open_parts.append((promised, middle))
        if not cost:  # Even the uncompressed network is not known to keep the loss.
            highest = max(self._tried)
            return round(math.sqrt(highest), 4) if highest < 1 / CLOSE else None
        return round(min(open_parts)[1], 4) if open_parts else None

    def _costs_within(self) -> dict[tuple[str, str], dict[float, float]]:
        """Returns, by variant, the cost at each part that is within the loss."""
        found: dict[tuple[str, str], dict[float, float]] = {}
        for part, points in self._tried.items():
            for point in points:
                cost = self._figure(point)
                if cost is not None and point.loss <= self._max_drop:
                    at = 1.0 if point.goal == UNCOMPRESSED else part
                    found.setdefault((point.format, point.variant), {})[at] = cost
        return found
