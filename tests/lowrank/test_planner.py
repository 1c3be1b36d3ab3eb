import pytest

from exporter.errors import RecipeError
from exporter.lowrank.ranks.budgeted import EnergyBudgetPolicy
from exporter.lowrank.ranks.costs import PARAMS
from scripts.bench.lib.policies import UniformBudgetPolicy


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_plans_hold_the_limit_and_use_it(planner, unit):
    costs = PARAMS if unit == "params" else planner.macs
    full, smallest = planner.whole(costs), planner.smallest(costs)
    for limit in (smallest, full // 4, full // 2, full):
        plan = planner.within(costs, limit)
        used = sum(getattr(layer, f"{unit}_after") or 0 for layer in plan.layers)
        assert used <= limit
        # One rank more of the large layer takes 2 % of the model.
        assert used >= 0.95 * limit or limit == smallest
    with pytest.raises(RecipeError, match=f"smallest reachable is {smallest:,}"):
        planner.within(costs, smallest - 1)


def test_a_budget_above_everything_keeps_the_model(planner, trained_mlp):
    compressed = planner.best_within(PARAMS, 10 * planner.whole())
    assert not compressed.factors
    assert compressed.model.count_params() == trained_mlp.count_params()


@pytest.mark.parametrize("kind", [UniformBudgetPolicy, EnergyBudgetPolicy])
def test_what_is_chosen_is_no_worse_than_simpler_cuts(kind, planner):
    """By what it is chosen by: the divergence on the calibration data."""
    limit = planner.whole() // 6
    simpler = planner.engine.factorize(planner.engine.plan(planner.policy(PARAMS, limit, kind)))
    best = planner.best_within(PARAMS, limit)
    assert planner.loss(best) <= planner.loss(simpler)
