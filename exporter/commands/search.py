"""Searches for the ranks that use a budget, by exporting and measuring models."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from exporter.commands.budgets import labelled
from exporter.commands.trials import Trials
from exporter.data import Dataset
from exporter.disk import scratch_folder
from exporter.errors import RecipeError
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.costs import PARAMS, CheaperCosts, Costs
from exporter.lowrank.ranks.named import policy_for
from exporter.lowrank.ranks.policy import WholeLayers
from exporter.options.groups import HERE
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.targets import TARGETS, Target
from exporter.targets.base import Cost

SIZE_ROUNDS = 10
SIZE_USED = 0.985
"""A size is searched for until this part of the budget is used."""

SEARCH_ROUNDS = 7
"""Halvings of the range, on a logarithmic scale, in which accuracy and costs are searched for."""

LATENCY_MARGIN = 0.95
"""What the search allows itself of a latency: timings vary from run to run."""


def factorize(
    engine: Engine, recipe: Recipe, dataset: Dataset | None, progress: Progress | None = None
) -> Compressed:
    """Factorizes by the rank of a recipe, or within its budget, with data fitted to the model.

    Raises:
        RecipeError: If the rank does not fit the model, or the budget cannot be reached.
        DataError: If ``max_drop`` is asked for without labelled validation data.
        ConversionError: If the budget or the target needs artifacts, and the model does not
            convert, or the runtime cannot run them.
    """
    policy = policy_for(recipe.goal)
    if policy is not None:
        return engine.factorize(engine.plan(policy))
    with scratch_folder() as folder:
        return _Search(engine, recipe, dataset, progress or Logged(), folder).run()


class _Search:
    """Finds the ranks of one model within the budget of a recipe."""

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        dataset: Dataset | None,
        progress: Progress,
        folder: Path,
    ) -> None:
        self._engine, self._goal, self._progress = engine, recipe.goal, progress
        self._planner = Planner(engine, progress)
        self._folder, self._recipe, self._dataset = folder, recipe, dataset

    @cached_property
    def _trials(self) -> Trials:
        return Trials(self._engine, self._recipe, self._dataset, self._folder)

    def run(self) -> Compressed:
        goal = self._goal
        name = HERE if goal.max_latency is not None else goal.target
        target = TARGETS[name] if name else None
        costs = self._trials.costs(target, self._planner, self._progress) if target else None
        if goal.max_drop is not None:
            return self._within_drop(costs or PARAMS, target)
        if target and costs and (limit := goal.max_latency or goal.max_instructions):
            return self._planner.best_within(costs, self._cost_within(limit, costs, target))
        units = PARAMS if goal.max_macs is None else self._planner.macs
        if costs is not None:
            try:
                return self._within(CheaperCosts(units, costs))
            except RecipeError:
                found = self._within(units)
            self._progress.note(
                f"{goal.kind} cannot be kept by ranks that cost less than whole layers on "
                f"{name}: ranks that cost more are taken as well"
            )
            return found
        return self._within(units)

    def _within(self, units: Costs) -> Compressed:
        """Factorizes within a limit of parameters, MACs or bytes."""
        goal, baseline = self._goal, self._engine.baseline
        if goal.max_size is None:
            limit = int(goal.limit(baseline.params, baseline.macs))
            return self._planner.best_within(units, limit)
        size, budget = goal.max_size, self._params_for_size(units, goal.max_size)
        return self._planner.best_within(
            units, budget, fits=lambda plan: self._trials.size(plan) <= size
        )

    def _params_for_size(self, units: Costs, limit: int) -> int:
        """Finds the most parameters whose artifacts fit, by exporting models of planned shapes.

        The size grows with the parameters, nearly in proportion: each guess lies on the line
        through the nearest sizes below and above the limit, and every third one halves what is left
        between.

        Raises:
            RecipeError: If the lowest ranks take more.
        """
        planner, trials = self._planner, self._trials
        least, most = planner.smallest(units), planner.whole(units)
        slope, target = trials.bytes_per_parameter, (1 + SIZE_USED) / 2 * limit
        fitting: tuple[int, int] | None = None
        exceeding: tuple[int, int] | None = None
        low, high, budget = least, most, max(least, min(most, int(limit / slope)))
        with self._progress.track("Searching for the size", SIZE_ROUNDS) as advance:
            for number in range(SIZE_ROUNDS):
                size = trials.size(planner.within(units, budget))
                advance(number + 1, f"{size:,} bytes")
                if size <= limit:
                    fitting, low = (budget, size), budget + 1
                    if size >= SIZE_USED * limit:
                        break
                else:
                    exceeding, high = (budget, size), budget - 1
                if low > high:
                    break
                if fitting and exceeding:
                    slope = (exceeding[1] - fitting[1]) / (exceeding[0] - fitting[0])
                guess = round(budget + (target - size) / slope)
                halfway = (low + high) // 2
                budget = max(low, min(high, halfway if number % 3 == 2 else guess))
            if fitting is None:
                smallest, artifact = trials.largest(planner.within(units, least))
                if smallest > limit:
                    raise RecipeError(
                        f"max_size of {limit:,} bytes cannot be reached by low rank alone. The "
                        f"smallest reachable is {smallest:,} bytes, which {artifact} takes. Raise "
                        "the limit, or choose another format or variant."
                    )
                return least
        return fitting[0]

    def _cost_within(self, limit: float, costs: Costs, target: Target) -> int:
        """Finds the largest cost by layers whose artifacts keep a limit, measured on a target.

        Raises:
            RecipeError: If the ranks that cost least exceed it.
        """
        planner, margin = self._planner, LATENCY_MARGIN if target.name == HERE else 1.0
        least, most = planner.smallest(costs), planner.whole(costs)
        label = f"Searching for the cost on {target.name}"
        with self._progress.track(label, SEARCH_ROUNDS + 2) as advance:

            def fits(budget: int, number: int) -> bool:
                cost, artifact = self._trials.costliest(planner.within(costs, budget), target)
                advance(number + 1, target.text(cost))
                if number == 0 and cost.value > margin * limit:
                    raise RecipeError(
                        f"{self._goal.kind} of {target.text(Cost(limit))} cannot be reached by low "
                        f"rank alone. The smallest reachable on {target.name!r} is about "
                        f"{target.text(Cost(cost.value / margin))}, which {artifact} takes. Raise "
                        "the limit, or choose another format or variant."
                    )
                return cost.value <= margin * limit

            fits(least, 0)
            if fits(most, 1):
                return most
            return _largest(least, most, lambda budget, number: fits(budget, number + 2))

    def _within_drop(self, costs: Costs, target: Target | None) -> Compressed:
        """Finds the ranks of the least cost whose accuracy on the validation data is high enough.

        Where their artifact costs no less on the target, all layers stay whole.
        """
        planner, limit = self._planner, float(self._goal.max_drop or 0)
        held = labelled(self._dataset, self._recipe)
        baseline = held.accuracy(self._engine.baseline)
        found: dict[int, Compressed] = {}
        least, most = planner.smallest(costs), planner.whole(costs)
        with self._progress.track("Searching for the accuracy", SEARCH_ROUNDS) as advance:

            def spoils(budget: int, number: int) -> bool:
                compressed = self._engine.factorize(planner.within(costs, budget))
                reached = held.accuracy(compressed.network)
                advance(number + 1, f"{budget:,} {costs.unit}: {reached:.2%}")
                good_enough = reached >= baseline - limit
                if good_enough:
                    found[budget] = compressed
                return not good_enough

            _largest(least, most, spoils)
        best = found[min(found)] if found else None
        if best and (target is None or self._trials.is_cheaper(best.plan, target)):
            return best
        if best and target:
            self._progress.note(f"Low rank costs no less on {target.name}: all layers stay whole")
        return self._engine.factorize(self._engine.plan(WholeLayers()))


def _largest(least: int, most: int, fits: Callable[[int, int], bool]) -> int:
    """Bisects on a logarithmic scale for the largest budget that fits; ``least`` does."""
    low, high = np.log(max(1, least)), np.log(max(1, most))
    best = least
    for number in range(SEARCH_ROUNDS):
        middle = (low + high) / 2
        budget = max(least, min(most, round(float(np.exp(middle)))))
        if fits(budget, number):
            low, best = middle, max(best, budget)
        else:
            high = middle
    return best
