"""The multiple-choice knapsack: takes one rank for each kernel within a budget.

Each rank has a cost and a loss. The total cost stays within the budget, and the total loss is the
smallest possible (Kellerer, Pferschy and Pisinger, *Knapsack Problems*, 2004, chapter 11).
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from exporter.errors import RecipeError

BINS = 20_000
"""Number of costs that the knapsack distinguishes; larger budgets are counted in a larger unit."""


class UnreachableError(RecipeError):
    """No choice fits the budget; ``smallest`` is the smallest budget that one fits."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class Option(NamedTuple):
    """A rank of one kernel, or None for the layer as it is, with its cost and its finite loss."""

    cost: int
    loss: float
    rank: int | None


Ladder = list[Option]
"""Options by rising cost and falling loss."""


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Takes one option of each kernel, with the smallest total loss that fits the budget.

    Dynamic programming runs over the cost above the cheapest choice. It is exact if all costs are
    multiples of a unit that divides this room into at most ``BINS`` parts. Otherwise costs are
    rounded up to a larger unit and the rest is spent greedily; the loss is then no larger than that
    of any choice that leaves one unit for each kernel, nor than that of the greedy descent. Of
    options with the same loss, the cheapest one is taken.

    Args:
        options: At least one for each kernel, in any order, by name.
        budget: The cost that all kernels together may have.

    Raises:
        UnreachableError: If the cheapest options exceed the budget.
    """
    ladders = _ladders(options, budget)
    exact = _spend(ladders, _knapsack(ladders, budget), budget)
    best = min((exact, _descend(ladders, budget)), key=lambda chosen: _loss(ladders, chosen))
    return _taken(options, ladders, best)


def allocate_evenly(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Takes the cheapest options whose losses are all within one bound, the smallest that fits.

    See ``allocate``.
    """
    ladders = _ladders(options, budget)

    def within(bound: float) -> list[int]:  # Losses fall along a ladder.
        return [sum(option.loss > bound for option in ladder[:-1]) for ladder in ladders]

    bounds = sorted({option.loss for ladder in ladders for option in ladder})
    first = bisect_left(bounds, True, key=lambda bound: _cost(ladders, within(bound)) <= budget)
    return _taken(options, ladders, within(bounds[first]) if bounds else [])


def _ladders(options: Mapping[str, Sequence[Option]], budget: int) -> list[Ladder]:
    ladders = [_undominated(each) for each in options.values()]
    smallest = _cost(ladders, [0] * len(ladders))
    if smallest > budget:
        raise UnreachableError(
            f"A budget of {budget:,} cannot be reached. The smallest reachable is {smallest:,}.",
            smallest,
        )
    return ladders


def _undominated(options: Sequence[Option]) -> Ladder:
    """Drops each option for which another one costs no more and loses no more."""
    ladder: Ladder = []
    for option in sorted(options, key=lambda o: (o.cost, o.loss)):
        if not ladder or option.loss < ladder[-1].loss:
            ladder.append(option)
    return ladder


def _knapsack(ladders: Sequence[Ladder], budget: int) -> list[int]:
    extras = [[option.cost - ladder[0].cost for option in ladder] for ladder in ladders]
    room = budget - _cost(ladders, [0] * len(ladders))
    if sum(extra[-1] for extra in extras) <= room:
        return [len(ladder) - 1 for ladder in ladders]
    unit = math.gcd(*chain.from_iterable(extras))
    unit *= max(1, -(-room // (unit * BINS)))
    bins = room // unit

    # The least loss of the kernels so far at each cost, and which option of the last one it takes.
    least = np.full(bins + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(ladders), bins + 1), np.int32)
    for number, (ladder, extra) in enumerate(zip(ladders, extras, strict=True)):
        before, least = least, np.full(bins + 1, np.inf)
        for index, option in enumerate(ladder):
            weight = -(-extra[index] // unit)
            if weight > bins:
                break
            losses = before[: bins + 1 - weight] + option.loss
            better = losses < least[weight:]
            np.copyto(least[weight:], losses, where=better)
            np.copyto(taken[number, weight:], index, where=better)

    at = int(least.argmin())  # The first one is the cheapest.
    chosen = [0] * len(ladders)
    for number in reversed(range(len(ladders))):
        chosen[number] = int(taken[number, at])
        at -= -(-extras[number][chosen[number]] // unit)
    return chosen


def _descend(ladders: Sequence[Ladder], budget: int) -> list[int]:
    chosen = [len(ladder) - 1 for ladder in ladders]
    steps: list[tuple[float, int, int]] = []

    def push(number: int) -> None:
        ladder, now = ladders[number], chosen[number]
        if now:
            heapq.heappush(steps, min((_price(ladder, i, now), number, i) for i in range(now)))

    for number in range(len(ladders)):
        push(number)
    cost = _cost(ladders, chosen)
    while cost > budget:
        _, number, index = heapq.heappop(steps)
        cost += ladders[number][index].cost - ladders[number][chosen[number]].cost
        chosen[number] = index
        push(number)
    return _spend(ladders, chosen, budget)


def _spend(ladders: Sequence[Ladder], chosen: Sequence[int], budget: int) -> list[int]:
    """Takes the step up that gains the most for its cost, until none fits."""
    spent, left = list(chosen), budget - _cost(ladders, chosen)
    while True:
        steps = [
            (_price(ladder, now, index), -number, index)
            for number, (ladder, now) in enumerate(zip(ladders, spent, strict=True))
            for index in range(now + 1, len(ladder))
            if ladder[index].cost - ladder[now].cost <= left
        ]
        if not steps:
            return spent
        _, minus_number, index = max(steps)
        ladder, now = ladders[-minus_number], spent[-minus_number]
        left -= ladder[index].cost - ladder[now].cost
        spent[-minus_number] = index


def _price(ladder: Ladder, low: int, high: int) -> float:
    """Returns the difference in loss of two options for each unit of cost."""
    return (ladder[low].loss - ladder[high].loss) / (ladder[high].cost - ladder[low].cost)


def _cost(ladders: Sequence[Ladder], chosen: Sequence[int]) -> int:
    return sum(ladder[index].cost for ladder, index in zip(ladders, chosen, strict=True))


def _loss(ladders: Sequence[Ladder], chosen: Sequence[int]) -> float:
    return math.fsum(ladder[index].loss for ladder, index in zip(ladders, chosen, strict=True))


def _taken(
    options: Mapping[str, Sequence[Option]], ladders: Sequence[Ladder], chosen: Sequence[int]
) -> dict[str, Option]:
    return {
        name: ladder[index] for name, ladder, index in zip(options, ladders, chosen, strict=True)
    }
