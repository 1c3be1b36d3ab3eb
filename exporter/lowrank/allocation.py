"""Ranks for a budget: which kernels are worth their parameters, or their multiplications.

Each kernel has options, a cost and a loss for every rank; one of each is taken so that the total
cost stays within the budget and the total loss is the smallest. That is the multiple-choice
knapsack problem (Kellerer, Pferschy and Pisinger, *Knapsack Problems*, 2004, chapter 11).
"""

import heapq
import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from exporter.errors import RecipeError
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks import (
    Candidate,
    Choice,
    Curves,
    RankPlan,
    RankPolicy,
    factorizable,
    listing,
    plan_from,
)

CostKind = Literal["params", "macs"]

BINS = 20_000
"""Costs that the knapsack tells apart; larger budgets are counted in multiples of a unit."""

SMALL_RANKS = (1, 2, 3, 4, 6, 8, 12)
MAX_LARGE_RANKS = 30


class UnreachableError(RecipeError):
    """No choice fits the budget.

    Attributes:
        smallest: The smallest budget that one fits.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class Option(NamedTuple):
    """What can be done with one kernel.

    Attributes:
        cost: In whatever the budget counts.
        loss: Finite, not negative.
        rank: None keeps the layer as it is.
    """

    cost: int
    loss: float
    rank: int | None


Ladder = list[Option]
"""Options from the cheapest and worst to the dearest and best; each step up buys something."""


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Takes one option of each kernel, with the smallest total loss that fits the budget.

    Dynamic programming over the cost above the cheapest choice. It is exact where all costs are
    multiples of a unit that goes into this room at most ``BINS`` times. Otherwise they are rounded
    up to a larger unit, what rounding left is spent greedily, and the loss is no larger than that
    of any choice that leaves one unit for each kernel; nor is it larger than that of
    ``allocate_greedily``. Of options of the same loss, the cheapest one is taken.

    Args:
        options: At least one for each kernel, in any order, by name.
        budget: Of all kernels together.

    Raises:
        UnreachableError: If the cheapest options exceed the budget.
    """
    ladders = _ladders(options, budget)
    exact = _spend(ladders, _knapsack(ladders, budget), budget)
    best = min((exact, _descend(ladders, budget)), key=lambda chosen: _loss(ladders, chosen))
    return _taken(options, ladders, best)


def allocate_greedily(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Starts from the best options, and takes the step that loses the least for what it saves.

    When it fits, what the last step saved too much is spent on what gains the most for its cost.
    See ``allocate``.
    """
    ladders = _ladders(options, budget)
    return _taken(options, ladders, _descend(ladders, budget))


def allocate_evenly(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Takes the cheapest options whose losses are all within one bound, the smallest that fits.

    See ``allocate``.
    """
    ladders = _ladders(options, budget)

    def within(bound: float) -> list[int]:
        last = [len(ladder) - 1 for ladder in ladders]
        return [
            next((i for i, option in enumerate(ladder) if option.loss <= bound), last[number])
            for number, ladder in enumerate(ladders)
        ]

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
    """Leaves out each option that another one beats by cost without losing more."""
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
    unit *= max(1, _divide_up(room, unit * BINS))
    bins = room // unit

    # The least loss of the kernels so far at each cost, and which option of the last one it takes.
    least = np.full(bins + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(ladders), bins + 1), np.int32)
    for number, (ladder, extra) in enumerate(zip(ladders, extras, strict=True)):
        before, least = least, np.full(bins + 1, np.inf)
        for index, option in enumerate(ladder):
            weight = _divide_up(extra[index], unit)
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
        at -= _divide_up(extras[number][chosen[number]], unit)
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
    """Takes the step up that gains the most for its cost, as long as one fits."""
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
    """Returns the loss that separates two options, for each unit of cost that does."""
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


def _divide_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


SMALL_KERNEL = 64
"""Break-even rank up to which every rank is worth considering."""


def rank_grid(kernel: Kernel) -> tuple[int, ...]:
    """Lists the ranks below break-even that are worth considering, about 60 at most.

    Matrix kernels work in tiles, so that a rank between multiples of 8 takes as long as the next
    one; the larger the rank, the less a small step changes.
    """
    # Where break-even is above it, the full rank is exact already.
    limit = min(kernel.break_even_rank, kernel.full_rank + 1)
    if limit <= SMALL_KERNEL:  # What a step saves shows in the size, and hardly in the time.
        return tuple(range(1, math.ceil(limit)))
    stride = 32 * max(1, math.ceil((limit - 256) / (32 * MAX_LARGE_RANKS)))
    ranks = chain(
        SMALL_RANKS,
        range(16, 129, 8),
        range(144, 257, 16),
        range(256 + stride, math.ceil(limit), stride),
    )
    return tuple(rank for rank in ranks if rank < limit)


@dataclass(frozen=True)
class Sensitivity:
    """What a model loses by the error of one kernel.

    Attributes:
        scale: The loss at rank 0.
        exponent: How the loss grows with the squared error.
    """

    scale: float = 1.0
    exponent: float = 1.0

    def loss(self, discarded_energy: float) -> float:
        """Predicts the loss: ``scale * discarded_energy ** exponent``.

        Args:
            discarded_energy: The part of the squared error of rank 0 that is left, 0 to 1.
        """
        return float(self.scale * discarded_energy**self.exponent)


class BudgetedPolicy(RankPolicy):
    """Base of the policies that make a model fit a limit."""

    needs_curves = True
    method: ClassVar[str]

    def __init__(
        self,
        kind: CostKind,
        limit: int,
        *,
        fixed_macs: int = 0,
        sensitivities: Mapping[str, Sensitivity] | None = None,
    ) -> None:
        """Sets the limit.

        Args:
            kind: What is limited: parameters, or multiply-accumulates of one sample.
            limit: Of the whole model, layers that are not factorized included.
            fixed_macs: Multiply-accumulates of the layers without a kernel. Their parameters are
                known.
            sensitivities: By candidate name; where there is none, the loss is the discarded part
                of the energy. Not all policies make use of them.
        """
        self.kind = kind
        self.limit = limit
        self.fixed_macs = fixed_macs
        self.sensitivities = dict(sensitivities or {})

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a limit that the cheapest ranks exceed."""
        fixed = self._fixed_cost(candidates)
        smallest = fixed + sum(
            min(self._cost(c, rank) for rank in (None, *rank_grid(c.kernel)))
            for c in candidates
            if c.kernel is not None
        )
        if smallest > self.limit:
            raise UnreachableError(
                f"A limit of {self.limit:,} {self._unit} cannot be reached by the choice of ranks. "
                f"The smallest reachable is {smallest:,}. Raise the limit, or factorize more "
                f"layers: those that are not take {fixed:,}. Layers: {listing(candidates)}.",
                smallest,
            )

    def select(self, candidates: Sequence[Candidate], curves: Curves | None = None) -> RankPlan:
        """See the base class."""
        self.check(candidates)
        return plan_from(candidates, self.choose(candidates, curves or {}))

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class; candidates without a kernel count towards the limit."""
        by_name = {candidate.name: candidate for candidate in factorizable(candidates)}
        options = {name: self._options(c, curves) for name, c in by_name.items()}
        taken = self._allocate(options, self.limit - self._fixed_cost(candidates))
        return {
            name: Choice(option.rank, self._reason(by_name[name], option, options[name]))
            for name, option in taken.items()
        }

    @abstractmethod
    def _allocate(
        self, options: Mapping[str, Sequence[Option]], budget: int
    ) -> dict[str, Option]: ...

    @abstractmethod
    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float: ...

    def _options(self, candidate: Candidate, curves: Curves) -> list[Option]:
        dense = Option(self._cost(candidate, None), 0.0, None)
        grid = rank_grid(candidate.kernel) if candidate.kernel else ()
        return [dense] + [
            Option(self._cost(candidate, rank), self._loss(candidate, rank, curves), rank)
            for rank in grid
        ]

    def _cost(self, candidate: Candidate, rank: int | None) -> int:
        if self.kind == "params":
            return candidate.params(rank)
        return candidate.macs(rank) or 0

    def _fixed_cost(self, candidates: Sequence[Candidate]) -> int:
        if self.kind == "macs":
            return self.fixed_macs
        return sum(c.params() for c in candidates if c.kernel is None)

    def _reason(self, candidate: Candidate, taken: Option, options: Sequence[Option]) -> str:
        if taken.rank is None:
            cheapest = min(option.cost for option in options)
            return f"kept: {'no rank is cheaper' if taken.cost == cheapest else self.worth}"
        full = candidate.kernel.full_rank if candidate.kernel else taken.rank
        return f"{self.method}: rank {taken.rank} of {full} within {self.limit:,} {self._unit}"

    @property
    def _unit(self) -> str:
        return "parameters" if self.kind == "params" else "multiply-accumulates"

    worth: ClassVar[str] = "worth more than its cost"
    """Why a layer is kept although a rank would be cheaper."""


class BudgetPolicy(BudgetedPolicy):
    """The smallest predicted loss within the limit, by ``allocate``."""

    method = "knapsack"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate(options, budget)

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        sensitivity = self.sensitivities.get(candidate.name, Sensitivity())
        return sensitivity.loss(_discarded_energy(candidate, rank, curves))


class GreedyBudgetPolicy(BudgetPolicy):
    """The same loss, lowered by ``allocate_greedily``: a baseline."""

    method = "greedy"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_greedily(options, budget)


class EnergyBudgetPolicy(BudgetedPolicy):
    """The most energy that all kernels can keep alike within the limit: a baseline."""

    method = "same energy"
    worth = "no lower rank keeps enough energy"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_evenly(options, budget)

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        return _discarded_energy(candidate, rank, curves)


class UniformBudgetPolicy(BudgetedPolicy):
    """The largest part of break-even that all kernels can keep alike within the limit: a baseline.

    Ranks are those of ``rank_grid``, next above that part.
    """

    needs_curves = False
    method = "same fraction"
    worth = "no lower rank keeps enough parameters"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_evenly(options, budget)

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        return 1.0 - rank / candidate.kernel.break_even_rank if candidate.kernel else 0.0


def _discarded_energy(candidate: Candidate, rank: int, curves: Curves) -> float:
    curve = curves[candidate.name]
    return float(curve[rank] / curve[0]) if curve[0] else 0.0
