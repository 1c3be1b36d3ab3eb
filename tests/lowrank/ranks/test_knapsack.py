import itertools
import math
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.lowrank.ranks import knapsack
from exporter.lowrank.ranks.knapsack import (
    Option,
    UnreachableError,
    allocate,
    allocate_evenly,
)
from scripts.bench.lib.policies import allocate_greedily

ALLOCATORS = [allocate, allocate_greedily, allocate_evenly]


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
        unit = -(-(budget - cheapest(options)) // knapsack.BINS)
        reserved = budget - len(options) * unit
        if reserved >= cheapest(options):
            assert loss(chosen) <= brute_force(options, reserved)
        assert loss(chosen) >= brute_force(options, budget)

    @mock.patch.object(knapsack, "BINS", 8)
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

    @mock.patch.object(knapsack, "BINS", 2)
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
