import itertools
import math
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.lowrank import allocation
from exporter.lowrank.allocation import (
    BudgetPolicy,
    EnergyBudgetPolicy,
    GreedyBudgetPolicy,
    Option,
    Sensitivity,
    UniformBudgetPolicy,
    UnreachableError,
    allocate,
    allocate_evenly,
    allocate_greedily,
    rank_grid,
)
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks import Candidate, factorizable
from exporter.lowrank.rewrite import candidates

ALLOCATORS = [allocate, allocate_greedily, allocate_evenly]
POLICIES = [BudgetPolicy, GreedyBudgetPolicy, EnergyBudgetPolicy, UniformBudgetPolicy]


def cost(chosen):
    return sum(option.cost for option in chosen.values())


def loss(chosen):
    return math.fsum(option.loss for option in chosen.values())


def cheapest(options):
    return sum(min(option.cost for option in each) for each in options.values())


def dearest(options):
    return sum(max(option.cost for option in each) for each in options.values())


def brute_force(options, budget):
    """The smallest loss within the budget, by trying everything."""
    return min(
        math.fsum(option.loss for option in choice)
        for choice in itertools.product(*options.values())
        if sum(option.cost for option in choice) <= budget
    )


SMALL_COSTS = st.integers(0, 40) | st.integers(0, 500)


# Losses add up exactly; zeros and ties are among them.
@st.composite
def problems(draw, costs=SMALL_COSTS):
    option = st.builds(
        Option, cost=costs, loss=st.integers(0, 64).map(lambda n: n / 64), rank=st.none()
    )
    lists = draw(st.lists(st.lists(option, min_size=1, max_size=4), max_size=4))
    options = {f"layer_{number}": each for number, each in enumerate(lists)}
    budget = draw(st.integers(cheapest(options), dearest(options) + 3))
    return options, budget


def large_problem(seed, kernels=60, ranks=60, largest=5e8):
    """Kernels of sizes from a thousand to half a billion, each with a decaying loss."""
    generator = np.random.default_rng(seed)
    options = {}
    for number in range(kernels):
        size = int(10 ** generator.uniform(3, np.log10(largest)))
        parts = np.sort(generator.uniform(0, 1, ranks))
        losses = generator.uniform(0.1, 3) * (1 - parts) ** generator.uniform(1, 6)
        options[f"layer_{number}"] = [
            Option(int(part * size), float(value), rank + 1)
            for rank, (part, value) in enumerate(zip(parts, losses, strict=True))
        ] + [Option(size, 0.0, None)]
    return options


class TestAllocate:
    @given(problems())
    def test_finds_the_smallest_loss_there_is(self, problem):
        options, budget = problem
        chosen = allocate(options, budget)
        assert list(chosen) == list(options)
        assert all(chosen[name] in options[name] for name in options)
        assert cost(chosen) <= budget
        assert loss(chosen) == brute_force(options, budget)

    @given(problems(costs=st.integers(0, 5 * 10**8)))
    def test_rounding_costs_at_most_one_unit_a_kernel(self, problem):
        options, budget = problem
        chosen = allocate(options, budget)
        assert cost(chosen) <= budget
        unit = -(-(budget - cheapest(options)) // allocation.BINS)
        reserved = budget - len(options) * unit
        if reserved >= cheapest(options):
            assert loss(chosen) <= brute_force(options, reserved)
        assert loss(chosen) >= brute_force(options, budget)

    @mock.patch.object(allocation, "BINS", 8)
    def test_costs_with_a_common_unit_are_not_rounded(self):
        """60 is 6 units of 10; rounded up to eighths, the best choice would exceed it."""
        options = {
            "a": [Option(0, 1.0, 1), Option(20, 0.9, 2), Option(40, 0.1, 4)],
            "b": [Option(0, 1.0, 1), Option(10, 0.4, 2), Option(20, 0.0, 3)],
            "c": [Option(0, 1.0, 1), Option(10, 0.6, 2), Option(30, 0.4, 3)],
        }
        assert loss(allocate(options, 60)) == brute_force(options, 60) == 1.1

    @given(problems())
    def test_is_never_worse_than_the_baselines(self, problem):
        least = loss(allocate(*problem))
        assert least <= loss(allocate_greedily(*problem))
        assert least <= loss(allocate_evenly(*problem))

    @given(problems(), st.integers(1, 50))
    def test_a_larger_budget_never_hurts(self, problem, more):
        options, budget = problem
        assert loss(allocate(options, budget + more)) <= loss(allocate(options, budget))

    @given(problems(), st.data())
    def test_dominated_options_do_not_matter(self, problem, data):
        options, budget = problem
        worse = {
            name: data.draw(st.permutations([*each, Option(each[0].cost + 1, each[0].loss, 9)]))
            for name, each in options.items()
        }
        assert allocate(worse, budget) == allocate(options, budget)

    @given(problems())
    def test_of_equal_losses_the_cheapest_is_taken(self, problem):
        options, budget = problem
        chosen = allocate(options, budget)
        for name, option in chosen.items():
            same = [other for other in options[name] if other.loss <= option.loss]
            assert option.cost == min(other.cost for other in same)

    @pytest.mark.parametrize(("seed", "part"), [(0, 0.02), (1, 0.3), (2, 0.8)])
    def test_large_problems(self, seed, part):
        options = large_problem(seed)
        budget = int(part * dearest(options))
        start = time.process_time()
        chosen = allocate(options, budget)
        assert time.process_time() - start < 2
        assert 0.99 * budget < cost(chosen) <= budget
        assert loss(chosen) <= loss(allocate_greedily(options, budget))
        assert loss(chosen) < loss(allocate_evenly(options, budget))
        assert loss(allocate(options, int(1.05 * budget))) < loss(chosen)

    @mock.patch.object(allocation, "BINS", 2)
    def test_what_rounding_leaves_is_spent(self):
        """In units of 13, each step costs 1, and there is room for 1."""
        options = {
            "a": [Option(0, 0.9, 1), Option(9, 0.1, 2)],
            "b": [Option(0, 1.0, 1), Option(7, 0.4, 2)],
            "c": [Option(0, 1.0, 1), Option(13, 0.1, 2)],
        }
        assert [option.rank for option in allocate(options, 25).values()] == [2, 1, 2]
        # By the price alone, a and b come first, and there is no room for c.
        assert [option.rank for option in allocate_greedily(options, 25).values()] == [2, 2, 1]


@pytest.mark.parametrize("allocator", ALLOCATORS)
class TestAllAllocators:
    @given(problem=problems())
    def test_hold_the_budget_and_take_the_best_where_there_is_room(self, allocator, problem):
        options, budget = problem
        chosen = allocator(options, budget)
        assert list(chosen) == list(options)
        assert cost(chosen) <= budget
        chosen = allocator(options, dearest(options))
        for name, option in chosen.items():
            assert option.loss == min(other.loss for other in options[name])

    @given(problem=problems())
    def test_say_what_is_reachable(self, allocator, problem):
        options, _ = problem
        smallest = cheapest(options)
        assert cost(allocator(options, smallest)) == smallest
        with pytest.raises(UnreachableError, match=r"The smallest reachable is") as caught:
            allocator(options, smallest - 1)
        assert caught.value.smallest == smallest

    def test_take_nothing_of_nothing(self, allocator):
        assert allocator({}, 0) == {}


class TestAllocateEvenly:
    @given(problems())
    def test_all_losses_are_within_the_smallest_bound_that_fits(self, problem):
        options, budget = problem
        bound = max(
            (option.loss for option in allocate_evenly(options, budget).values()), default=0
        )
        lower = {
            name: [option for option in each if option.loss < bound]
            for name, each in options.items()
        }
        if bound and all(lower.values()):
            assert cheapest(lower) > budget


def kernel(m, n):
    return Kernel("", m, n, None, None, None, None, positions=1)


class TestRankGrid:
    def test_small_kernels_take_every_rank(self):
        assert rank_grid(kernel(36, 40)) == tuple(range(1, 19))

    def test_prefers_multiples_that_kernels_like(self):
        grid = rank_grid(kernel(1000, 1000))
        assert grid[:9] == (1, 2, 3, 4, 6, 8, 12, 16, 24)
        assert grid[-10:] == (224, 240, 256, 288, 320, 352, 384, 416, 448, 480)

    @given(m=st.integers(1, 60_000), n=st.integers(1, 60_000))
    def test_ends_below_break_even(self, m, n):
        grid = rank_grid(kernel(m, n))
        assert list(grid) == sorted(set(grid))
        assert len(grid) <= 64
        assert all(rank * (m + n) < m * n for rank in grid)
        limit = m * n / (m + n)
        assert not grid if limit <= 1 else grid[-1] >= 0.6 * limit or limit - grid[-1] <= 1

    def test_ends_at_the_full_rank_where_break_even_is_above_it(self):
        class Cheap(Kernel):
            break_even_rank = 100.0

        assert rank_grid(Cheap("", 8, 6, None, None, None, None, positions=1)) == (1, 2, 3, 4, 5, 6)


def test_sensitivity_is_a_power_law():
    assert Sensitivity().loss(0.3) == 0.3
    assert Sensitivity(2.0, 0.5).loss(0.25) == 1.0
    assert Sensitivity(2.0, 1.5).loss(0.0) == 0.0


# Policies.


@pytest.fixture(scope="module")
def residual(build):
    return candidates(build("residual"))


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
        plan = policy("params", limit).select(residual, curves)
        assert params_after(plan) <= limit
        assert [layer.name for layer in plan.layers] == [c.name for c in residual]
        assert all(layer.rank is None for layer in plan.layers) == (part == 1.0)

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
    def test_macs_of_other_layers_count(self, policy, part, residual, curves):
        total = sum(c.macs() or 0 for c in residual)
        limit = int(part * total) + 1000
        plan = policy("macs", limit, fixed_macs=1000).select(residual, curves)
        assert macs_after(plan) + 1000 <= limit
        assert plan.ranks == policy("macs", limit - 1000).select(residual, curves).ranks

    def test_the_smallest_reachable_can_be_reached(self, policy, residual, curves):
        with pytest.raises(RecipeError) as caught:
            policy("params", 500).select(residual, curves)
        smallest = caught.value.smallest
        message = str(caught.value)
        assert message.startswith("A limit of 500 parameters cannot be reached")
        assert f"The smallest reachable is {smallest:,}." in message
        # The two normalisations.
        assert "those that are not take 128" in message
        assert "widen_1 (32 x 48)" in message
        plan = policy("params", smallest).select(residual, curves)
        assert set(plan.ranks.values()) == {1}
        assert params_after(plan) == smallest
        with pytest.raises(UnreachableError):
            policy("params", smallest - 1).check(residual)

    def test_a_model_without_kernels_fits_or_does_not(self, policy, residual):
        others = [c for c in residual if c.kernel is None]
        assert policy("params", 128).select(others, {}).ranks == {}
        with pytest.raises(RecipeError, match="Layers: none can be factorized"):
            policy("params", 127).select(others, {})

    def test_every_choice_has_a_reason(self, policy, residual, curves):
        plan = policy("params", 5000).select(residual, curves)
        assert plan.ranks
        for layer in plan.layers:
            if layer.rank is not None:
                full = min(layer.shape)
                expected = f"{policy.method}: rank {layer.rank} of {full} within 5,000 parameters"
                assert layer.reason == expected
            elif layer.shape is not None:
                assert layer.reason.startswith("kept: ")

    def test_a_kernel_that_no_rank_makes_cheaper_stays_dense(self, policy, build):
        found = candidates(build("functional_two_inputs_two_outputs"))
        curves = {c.name: c.kernel.error_curve() for c in found}
        plan = policy("params", 400).select(found, curves)
        (amount,) = (layer for layer in plan.layers if layer.name == "amount")
        assert (amount.rank, amount.reason) == (None, "kept: no rank is cheaper")


@pytest.mark.parametrize("baseline", POLICIES[1:])
@given(data=st.data())
def test_the_knapsack_is_never_worse_than_a_baseline(baseline, residual, curves, data):
    kind = data.draw(st.sampled_from(["params", "macs"]))
    numbers = st.tuples(st.floats(0, 10), st.floats(0.5, 2))
    sensitivities = {name: Sensitivity(*data.draw(numbers)) for name in curves}
    total = sum((c.params() if kind == "params" else c.macs()) or 0 for c in residual)
    limit = int(data.draw(st.floats(0.25, 1)) * total)
    plan, other = (
        policy(kind, limit, sensitivities=sensitivities).select(residual, curves)
        for policy in (BudgetPolicy, baseline)
    )
    assert plan_loss(plan, curves, sensitivities) <= 1e-12 + plan_loss(other, curves, sensitivities)


def test_sensitive_kernels_are_kept(residual, curves):
    sensitivities = {"widen_1": Sensitivity(1000.0), "narrow_2": Sensitivity(0.0)}
    plan = BudgetPolicy("params", 5000, sensitivities=sensitivities).select(residual, curves)
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["widen_1"].reason == "kept: worth more than its cost"
    assert plan.ranks["narrow_2"] == 1


def test_even_policies_ignore_sensitivities(residual, curves):
    sensitivities = {"widen_1": Sensitivity(1000.0)}
    for policy in (EnergyBudgetPolicy, UniformBudgetPolicy):
        given_them = policy("params", 5000, sensitivities=sensitivities).select(residual, curves)
        assert given_them == policy("params", 5000).select(residual, curves)


def test_a_uniform_plan_needs_no_curves(residual):
    plan = UniformBudgetPolicy("params", 5000).select(residual)
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
    plan = BudgetPolicy("params", 10**6).select([zero, other], curves)
    assert plan.ranks == {"zero": 1}


def test_layers_without_a_kernel_count_as_they_are():
    bulk = Candidate(
        "bulk", "bulk", "Mystery", SimpleNamespace(count_params=lambda: 900), None, None, note="no"
    )
    thin = Candidate("thin", "thin", "Dense", None, None, kernel(20, 20))
    curves = {"thin": np.arange(20.0, -1.0, -1.0)}
    plan = BudgetPolicy("params", 1060).select([bulk, thin], curves)
    assert plan.ranks == {"thin": 4}
    assert plan.layers[0].reason == "no"


def test_a_lookup_is_kept_where_macs_count():
    table = Candidate(
        "table",
        "table",
        "Embedding",
        None,
        None,
        Kernel("", 100, 20, None, None, None, None, positions=5, looked_up=True),
    )
    curves = {"table": np.arange(20.0, -1.0, -1.0)}
    plan = BudgetPolicy("macs", 0).select([table], curves)
    assert plan.ranks == {}
    assert plan.layers[0].reason == "kept: no rank is cheaper"
