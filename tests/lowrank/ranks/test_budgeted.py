from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.lowrank.candidates import Candidate, candidates, factorizable
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.budgeted import (
    BudgetPolicy,
    EnergyBudgetPolicy,
    Sensitivity,
)
from exporter.lowrank.ranks.costs import PARAMS, MacCosts
from exporter.lowrank.ranks.knapsack import UnreachableError
from scripts.bench.lib.policies import GreedyBudgetPolicy, UniformBudgetPolicy

POLICIES = [BudgetPolicy, GreedyBudgetPolicy, EnergyBudgetPolicy, UniformBudgetPolicy]


def kernel(m, n, kind=Kernel, **options):
    layer = SimpleNamespace(count_params=lambda: m * n)
    given = {"variable": None, "read": None, "outputs": None, "positions": 1, **options}
    return kind(m=m, n=n, layer=layer, **given)


def test_sensitivity_is_a_power_law():
    assert Sensitivity().loss(0.3) == 0.3
    assert Sensitivity(2.0, 0.5).loss(0.25) == 1.0
    assert Sensitivity(2.0, 1.5).loss(0.0) == 0.0


# Policies.


@pytest.fixture(scope="module")
def residual(build):
    return candidates(Network(build("residual")))


@pytest.fixture(scope="module")
def curves(residual):
    return {c.name: c.kernel.error_curve() for c in factorizable(residual)}


def params_after(plan):
    return sum(layer.params_after for layer in plan.layers)


def macs_after(plan):
    return sum(layer.macs_after or 0 for layer in plan.layers)


def plan_loss(plan, curves, sensitivities=None):
    """The predicted loss of a plan."""
    total = 0.0
    for name, rank in plan.ranks.items():
        sensitivity = (sensitivities or {}).get(name, Sensitivity())
        total += sensitivity.loss(curves[name][rank] / curves[name][0])
    return total


@pytest.mark.parametrize("policy", POLICIES)
class TestAllPolicies:
    @pytest.mark.parametrize("part", [0.3, 0.5, 0.7, 0.9, 1.0])
    def test_the_whole_model_fits(self, policy, part, build, residual, curves):
        limit = int(part * build("residual").count_params())
        plan = policy(PARAMS, limit).select(residual, curves)
        assert params_after(plan) <= limit
        assert [layer.name for layer in plan.layers] == [c.name for c in residual]
        assert all(layer.rank is None for layer in plan.layers) == (part == 1.0)

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
    def test_macs_of_other_layers_count(self, policy, part, residual, curves):
        total = sum(c.macs() or 0 for c in residual)
        limit = int(part * total) + 1000
        plan = policy(MacCosts(1000), limit).select(residual, curves)
        assert macs_after(plan) + 1000 <= limit
        assert plan.ranks == policy(MacCosts(0), limit - 1000).select(residual, curves).ranks

    def test_the_smallest_reachable_can_be_reached(self, policy, residual, curves):
        with pytest.raises(RecipeError) as caught:
            policy(PARAMS, 500).select(residual, curves)
        smallest = caught.value.smallest
        message = str(caught.value)
        assert message.startswith("A limit of 500 parameters cannot be reached")
        assert f"The smallest reachable is {smallest:,}." in message
        # The two normalisations.
        assert "those that are not take 128" in message
        assert "widen_1 (32 x 48)" in message
        plan = policy(PARAMS, smallest).select(residual, curves)
        assert set(plan.ranks.values()) == {1}
        assert params_after(plan) == smallest
        with pytest.raises(UnreachableError):
            policy(PARAMS, smallest - 1).check(residual)

    def test_a_model_without_kernels_fits_or_does_not(self, policy, residual):
        others = [c for c in residual if c.kernel is None]
        assert policy(PARAMS, 128).select(others, {}).ranks == {}
        with pytest.raises(RecipeError, match="Layers: none can be factorized"):
            policy(PARAMS, 127).select(others, {})

    def test_every_choice_has_a_reason(self, policy, residual, curves):
        plan = policy(PARAMS, 5000).select(residual, curves)
        assert plan.ranks
        for layer in plan.layers:
            if layer.rank is not None:
                full = min(layer.shape)
                expected = f"{policy.method}: rank {layer.rank} of {full} within 5,000 parameters"
                assert layer.reason == expected
            elif layer.shape is not None:
                assert layer.reason.startswith("kept: ")

    def test_a_kernel_that_no_rank_makes_cheaper_stays_dense(self, policy, build):
        found = candidates(Network(build("functional_two_inputs_two_outputs")))
        curves = {c.name: c.kernel.error_curve() for c in found}
        plan = policy(PARAMS, 400).select(found, curves)
        (amount,) = (layer for layer in plan.layers if layer.name == "amount")
        assert (amount.rank, amount.reason) == (None, "kept: no rank is cheaper")


@pytest.mark.parametrize("baseline", POLICIES[1:])
@given(data=st.data())
def test_the_knapsack_is_never_worse_than_a_baseline(baseline, residual, curves, data):
    costs = data.draw(st.sampled_from([PARAMS, MacCosts(0)]))
    numbers = st.tuples(st.floats(0, 10), st.floats(0.5, 2))
    sensitivities = {name: Sensitivity(*data.draw(numbers)) for name in curves}
    total = costs.whole(residual)
    limit = int(data.draw(st.floats(0.25, 1)) * total)
    plan, other = (
        policy(costs, limit, sensitivities=sensitivities).select(residual, curves)
        for policy in (BudgetPolicy, baseline)
    )
    assert plan_loss(plan, curves, sensitivities) <= 1e-12 + plan_loss(other, curves, sensitivities)


def test_sensitive_kernels_are_kept(residual, curves):
    sensitivities = {"widen_1": Sensitivity(1000.0), "narrow_2": Sensitivity(0.0)}
    plan = BudgetPolicy(PARAMS, 5000, sensitivities=sensitivities).select(residual, curves)
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["widen_1"].reason == "kept: worth more than its cost"
    assert plan.ranks["narrow_2"] == 1


def test_even_policies_ignore_sensitivities(residual, curves):
    sensitivities = {"widen_1": Sensitivity(1000.0)}
    for policy in (EnergyBudgetPolicy, UniformBudgetPolicy):
        given_them = policy(PARAMS, 5000, sensitivities=sensitivities).select(residual, curves)
        assert given_them == policy(PARAMS, 5000).select(residual, curves)


def test_a_uniform_plan_needs_no_curves(residual):
    plan = UniformBudgetPolicy(PARAMS, 5000).select(residual)
    parts = [
        layer.rank / layer.break_even_rank for layer in plan.layers if layer.name.startswith("w")
    ]
    assert not UniformBudgetPolicy.needs_curves
    assert len(set(parts)) == 1


def test_a_zero_kernel_gets_rank_1():
    zero, other = (
        Candidate(name, name, "Dense", None, None, kernel(40, 40)) for name in ("zero", "other")
    )
    curves = {"zero": np.zeros(41), "other": np.arange(40.0, -1.0, -1.0)}
    plan = BudgetPolicy(PARAMS, 10**6).select([zero, other], curves)
    assert plan.ranks == {"zero": 1}


ONES = np.ones(900)


def test_layers_without_a_kernel_count_as_they_are():
    bulk = Candidate(
        "bulk",
        "bulk",
        "Mystery",
        SimpleNamespace(variables=[ONES], weights=[ONES]),
        None,
        None,
        note="no",
    )
    thin = Candidate("thin", "thin", "Dense", None, None, kernel(20, 20))
    curves = {"thin": np.arange(20.0, -1.0, -1.0)}
    plan = BudgetPolicy(PARAMS, 1060).select([bulk, thin], curves)
    assert plan.ranks == {"thin": 4}
    assert plan.layers[0].reason == "no"


def test_a_lookup_is_kept_where_macs_count():
    table = Candidate(
        "table",
        "table",
        "Embedding",
        None,
        None,
        kernel(100, 20, positions=5, applied=(0, 0, 5, 5)),
    )
    curves = {"table": np.arange(20.0, -1.0, -1.0)}
    plan = BudgetPolicy(MacCosts(0), 0).select([table], curves)
    assert plan.ranks == {}
    assert plan.layers[0].reason == "kept: no rank is cheaper"
