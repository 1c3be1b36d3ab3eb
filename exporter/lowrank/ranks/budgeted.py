"""Policies that choose ranks for a budget of parameters or multiply-accumulates."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from exporter.lowrank.candidates import Candidate, CostKind, factorizable, listing
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.knapsack import Option, UnreachableError, allocate, allocate_evenly
from exporter.lowrank.ranks.policy import Choice, Curves, RankPolicy

SMALL_RANKS = (1, 2, 3, 4, 6, 8, 12)
MAX_LARGE_RANKS = 30

SMALL_KERNEL = 64
"""Break-even rank up to which every rank is worth considering."""


def rank_grid(kernel: Kernel) -> tuple[int, ...]:
    """Lists the ranks below break-even that are worth considering, about 60 at most.

    Runtimes multiply in tiles, so a rank between two multiples of 8 takes as long as the higher
    one. The larger the rank, the less a small step changes.
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
    """The model's loss by the error of one kernel: ``scale * discarded_energy ** exponent``."""

    scale: float = 1.0
    exponent: float = 1.0

    def loss(self, discarded_energy: float) -> float:
        """Predicts the loss where a part of the energy, 0 to 1, is discarded."""
        return float(self.scale * discarded_energy**self.exponent)


class BudgetedPolicy(RankPolicy):
    """Base of the policies that make a model fit a limit.

    Attributes:
        method: What reasons call the policy.
        worth: Why a layer is kept although a rank would be cheaper.
    """

    needs_curves = True
    method: ClassVar[str]
    worth: ClassVar[str] = "worth more than its cost"

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
            kind: Whether parameters are limited, or multiply-accumulates of one sample.
            limit: The limit of the whole model, with the layers that are not factorized.
            fixed_macs: Multiply-accumulates of the layers without a kernel.
            sensitivities: Sensitivities by candidate name, for ``BudgetPolicy``; without one, the
                loss is the discarded part of the energy.
        """
        self.kind, self.limit, self.fixed_macs = kind, limit, fixed_macs
        self.sensitivities = dict(sensitivities or {})
        self._unit = "parameters" if kind == "params" else "multiply-accumulates"

    def smallest(self, candidates: Sequence[Candidate]) -> int:
        """Returns the least that any choice of ranks takes: all costs rise with the rank."""
        return self._fixed_cost(candidates) + sum(
            min(c.cost(self.kind, rank) for rank in (None, *rank_grid(c.kernel)[:1]))
            for c in candidates
            if c.kernel is not None
        )

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a limit that the cheapest ranks exceed."""
        fixed, smallest = self._fixed_cost(candidates), self.smallest(candidates)
        if smallest > self.limit:
            raise UnreachableError(
                f"A limit of {self.limit:,} {self._unit} cannot be reached by the choice of ranks. "
                f"The smallest reachable is {smallest:,}. Raise the limit, or factorize more "
                f"layers: those that are not take {fixed:,}. Layers: {listing(candidates)}.",
                smallest,
            )

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
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

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        """Returns the discarded part of the energy, 0 to 1."""
        curve = curves[candidate.name]
        return float(curve[rank] / curve[0]) if curve[0] else 0.0

    def _options(self, candidate: Candidate, curves: Curves) -> list[Option]:
        grid = rank_grid(candidate.kernel) if candidate.kernel else ()
        losses = {None: 0.0} | {rank: self._loss(candidate, rank, curves) for rank in grid}
        return [Option(candidate.cost(self.kind, r), loss, r) for r, loss in losses.items()]

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


class BudgetPolicy(BudgetedPolicy):
    """Takes the smallest predicted loss within the limit, by ``allocate``."""

    method = "knapsack"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate(options, budget)

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        sensitivity = self.sensitivities.get(candidate.name, Sensitivity())
        return sensitivity.loss(super()._loss(candidate, rank, curves))


class EnergyBudgetPolicy(BudgetedPolicy):
    """Keeps the largest part of the energy that all kernels can keep within the limit."""

    method = "same energy"
    worth = "no lower rank keeps enough energy"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_evenly(options, budget)
