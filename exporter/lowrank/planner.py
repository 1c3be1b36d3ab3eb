"""Plans the ranks of one model for budgets."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from exporter.errors import RecipeError
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.ranks.budgeted import (
    BudgetedPolicy,
    BudgetPolicy,
    EnergyBudgetPolicy,
    Sensitivity,
)
from exporter.lowrank.ranks.costs import PARAMS, Costs, MacCosts
from exporter.lowrank.ranks.policy import RankPlan
from exporter.lowrank.sensitivity import divergence, measure_sensitivities
from exporter.progress import Logged, Progress


class Planner:
    """Plans one model for budgets.

    Attributes:
        macs: The costs in multiply-accumulates.
    """

    def __init__(self, engine: Engine, progress: Progress | None = None) -> None:
        self.engine = engine
        self._progress = progress or Logged()
        kernels = sum(c.macs() or 0 for c in engine.candidates)
        self.macs: Costs = MacCosts(max(0, engine.network.macs - kernels))

    def within(self, costs: Costs, limit: int) -> RankPlan:
        """Returns the plan of the least loss within a limit.

        Raises:
            RecipeError: If the limit is below the smallest reachable figure, which it names.
        """
        return self.engine.plan(self.policy(costs, limit))

    def smallest(self, costs: Costs = PARAMS) -> int:
        """Returns the least that any plan costs."""
        return costs.smallest(self.engine.candidates)

    def whole(self, costs: Costs = PARAMS) -> int:
        """Returns the cost of the model as it is."""
        return costs.whole(self.engine.candidates)

    def best_within(
        self, costs: Costs, limit: int, *, fits: Callable[[RankPlan], bool] = lambda plan: True
    ) -> Compressed:
        """Factorizes within a limit by the knapsack, or at equal energies where that is better.

        The knapsack adds up losses that were measured one layer at a time. Where the error of one
        layer changes the loss of another, equal energies can be better, so both models are compared
        with the original on the calibration data.

        Raises:
            RecipeError: If the limit is below the smallest reachable figure, which it names.
        """
        best = self.engine.factorize(self.within(costs, limit))
        if self.engine.calibration is None:
            return best
        try:
            plan = self.engine.plan(self.policy(costs, limit, EnergyBudgetPolicy))
        except RecipeError:
            return best  # The limit cannot be kept at equal energies.
        if plan.ranks == best.plan.ranks or not fits(plan):
            return best
        other = self.engine.factorize(plan)
        return min(best, other, key=self.loss)

    def policy(
        self, costs: Costs, limit: int, kind: type[BudgetedPolicy] = BudgetPolicy
    ) -> BudgetedPolicy:
        """Returns a policy for a limit, with the sensitivities of the kernels."""
        return kind(costs, limit, sensitivities=self._sensitivities)

    @cached_property
    def _sensitivities(self) -> dict[str, Sensitivity]:
        return measure_sensitivities(self.engine, self._progress)

    def loss(self, compressed: Compressed) -> float:
        """Returns the mean divergence from the baseline on the calibration data; 0 without any."""
        calibration = self.engine.calibration
        if calibration is None:
            return 0.0
        original, copy = self.engine.baseline.runner(), compressed.network.runner()
        losses = [
            divergence(original(batch), copy(batch), calibration.logits)
            for batch in calibration.batches()
        ]
        return float(np.mean(losses))
