"""Budgets, on a small classifier; sizes and latencies are measured in the real runtimes."""

import numpy as np
import pytest

from exporter.commands.budgets import accuracy_drop, check_budget
from exporter.commands.export import export
from exporter.commands.search import compress_within, skeleton
from exporter.data import load_dataset
from exporter.errors import DataError, RecipeError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.budgeted import EnergyBudgetPolicy
from exporter.recipe import Recipe
from exporter.report.results import Budget
from scripts.bench.lib.policies import UniformBudgetPolicy


@pytest.fixture(scope="module")
def dataset(trained_mlp, digits):
    return fitted(digits, Network(trained_mlp))


@pytest.fixture(scope="module")
def engine(trained_mlp, dataset):
    return Engine(Network(trained_mlp), calibration_from(Network(trained_mlp), dataset, 1024))


@pytest.fixture(scope="module")
def planner(engine):
    return Planner(engine)


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_plans_hold_the_limit_and_use_it(planner, unit):
    full = getattr(planner, unit)
    smallest = planner.smallest(unit)
    for limit in (smallest, full // 4, full // 2, full):
        plan = planner.within(unit, limit)
        used = sum(getattr(layer, f"{unit}_after") or 0 for layer in plan.layers)
        assert used <= limit
        # One rank more of the large layer takes 2 % of the model.
        assert used >= 0.95 * limit or limit == smallest
    with pytest.raises(RecipeError, match=f"smallest reachable is {smallest:,}"):
        planner.within(unit, smallest - 1)


def test_a_budget_above_everything_keeps_the_model(planner, trained_mlp):
    compressed = planner.best_within("params", 10 * planner.params)
    assert not compressed.factors
    assert compressed.model.count_params() == trained_mlp.count_params()


@pytest.mark.parametrize("kind", [UniformBudgetPolicy, EnergyBudgetPolicy])
def test_what_is_chosen_is_no_worse_than_simpler_cuts(kind, planner):
    """By what it is chosen by: the divergence on the calibration data."""
    limit = planner.params // 6
    simpler = planner.engine.factorize(planner.engine.plan(planner.policy("params", limit, kind)))
    best = planner.best_within("params", limit)
    assert planner._loss(best.network) <= planner._loss(simpler.network)


@pytest.mark.parametrize("formats", [("tflite",), ("tflite", "onnx")])
def test_size_is_used_and_not_exceeded(engine, dataset, formats, tmp_path):
    limit = 120_000
    compressed = compress_within(engine, Recipe.of(max_size=limit, formats=formats), dataset)
    artifacts = export(compressed, tmp_path, formats=formats)
    assert 0.95 * limit <= max(artifact.size for artifact in artifacts) <= limit


def test_size_that_cannot_be_reached_says_what_can(engine, dataset):
    with pytest.raises(RecipeError, match=r"smallest reachable is [\d,]+ bytes"):
        compress_within(engine, Recipe.of(max_size=1000), dataset)


def test_latency_is_measured(engine, dataset):
    with pytest.raises(RecipeError, match="smallest reachable is about"):
        compress_within(engine, Recipe.of(max_latency=1e-9), dataset)
    fast_enough = compress_within(engine, Recipe.of(max_latency=1.0), dataset)
    # Everything is fast enough: nothing need be given up.
    assert fast_enough.model.count_params() > 0.7 * engine.network.params


def test_drop_holds_on_the_validation_data(engine, dataset, trained_mlp):
    compressed = compress_within(engine, Recipe.of(max_drop=0.02), dataset)
    assert accuracy_drop(Network(trained_mlp), compressed.network, dataset) <= 0.02
    assert compressed.model.count_params() < 0.7 * trained_mlp.count_params()


def test_drop_needs_labels():
    recipe = Recipe.of(max_drop=0.01, data="mine.npz")
    unlabelled = load_dataset({"x": np.zeros((8, 3), "float32")})
    for data in (None, unlabelled):
        with pytest.raises(DataError, match=r"validation data.*'mine\.npz'"):
            check_budget(recipe, data)


def test_skeleton_has_the_planned_shapes(planner):
    plan = planner.within("params", planner.params // 3)
    bones, real = skeleton(planner.engine, plan), planner.engine.factorize(plan)
    assert [w.shape for w in bones.model.weights] == [w.shape for w in real.model.weights]


def test_budget_is_held_up_to_its_limit():
    assert Budget("max_size", 100, 100).held
    assert not Budget("max_size", 100, 101).held
    assert not Budget("max_latency", 1.0, float("inf")).held
