"""Policies that choose ranks for a budget."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from exporter.lowrank.candidates import Candidate, factorizable, listing
from exporter.lowrank.ranks.costs import Costs
from exporter.lowrank.ranks.knapsack import Option, UnreachableError, allocate, allocate_evenly
from exporter.lowrank.ranks.policy import Choice, Curves, RankPolicy


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
        costs: Costs,
        limit: int,
        *,
        sensitivities: Mapping[str, Sensitivity] | None = None,
    ) -> None:
        """Sets the limit.

        Args:
            costs: What is limited.
            limit: The limit of the whole model, with the layers that are not factorized.
            sensitivities: Sensitivities by candidate name, for ``BudgetPolicy``; without one, the
                loss is the discarded part of the energy.
        """
        self.costs, self.limit = costs, limit
        self.sensitivities = dict(sensitivities or {})

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a limit that the cheapest ranks exceed."""
        fixed, smallest = self.costs.fixed(candidates), self.costs.smallest(candidates)
        if smallest > self.limit:
            raise UnreachableError(
                f"A limit of {self.limit:,} {self.costs.unit} cannot be reached by the choice of "
                f"ranks. The smallest reachable is {smallest:,}. Raise the limit, or factorize "
                f"more layers: those that are not take {fixed:,}. Layers: {listing(candidates)}.",
                smallest,
            )

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        by_name = {candidate.name: candidate for candidate in factorizable(candidates)}
        options = {name: self._options(c, curves) for name, c in by_name.items()}
        taken = self._allocate(options, self.limit - self.costs.fixed(candidates))
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
        ranks = self.costs.ranks(candidate)
        losses = {None: 0.0} | {rank: self._loss(candidate, rank, curves) for rank in ranks}
        return [Option(self.costs.of(candidate, r), loss, r) for r, loss in losses.items()]

    def _reason(self, candidate: Candidate, taken: Option, options: Sequence[Option]) -> str:
        if taken.rank is None:
            cheapest = min(option.cost for option in options)
            return f"kept: {'no rank is cheaper' if taken.cost == cheapest else self.worth}"
        full = candidate.kernel.full_rank if candidate.kernel else taken.rank
        return f"{self.method}: rank {taken.rank} of {full} within {self.limit:,} {self.costs.unit}"


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
