"""Budget policies that the knapsack is compared with."""

from collections.abc import Mapping, Sequence

from exporter.lowrank.candidates import Candidate
from exporter.lowrank.ranks import knapsack
from exporter.lowrank.ranks.budgeted import BudgetedPolicy, BudgetPolicy
from exporter.lowrank.ranks.knapsack import Option, allocate_evenly
from exporter.lowrank.ranks.policy import Curves


def allocate_greedily(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Starts from the best options, and takes the step that loses the least for what it saves.

    When it fits, what the last step saved too much is spent on what gains the most for its cost.
    See ``knapsack.allocate``.
    """
    ladders = knapsack._ladders(options, budget)
    return knapsack._taken(options, ladders, knapsack._descend(ladders, budget))


class GreedyBudgetPolicy(BudgetPolicy):
    """Lowers the loss of ``BudgetPolicy`` by ``allocate_greedily``."""

    method = "greedy"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_greedily(options, budget)


class UniformBudgetPolicy(BudgetedPolicy):
    """Keeps the largest part of break-even that all kernels can keep alike within the limit.

    Ranks are those of ``rank_grid``, next above that part.
    """

    needs_curves = False
    method = "same fraction"
    worth = "no lower rank keeps enough parameters"

    def _allocate(self, options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
        return allocate_evenly(options, budget)

    def _loss(self, candidate: Candidate, rank: int, curves: Curves) -> float:
        return 1.0 - rank / candidate.kernel.break_even_rank if candidate.kernel else 0.0
