"""Ranks for a budget: which kernels are worth their parameters, or their multiplications."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

from exporter.lowrank.candidates import Candidate, factorizable, listing
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.knapsack import (
    Option,
    UnreachableError,
    allocate,
    allocate_evenly,
    allocate_greedily,
)
from exporter.lowrank.ranks.policy import Choice, Curves, RankPlan, RankPolicy, plan_from

CostKind = Literal["params", "macs"]

SMALL_RANKS = (1, 2, 3, 4, 6, 8, 12)
MAX_LARGE_RANKS = 30

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
