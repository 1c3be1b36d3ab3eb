"""Budgets, on a small classifier; sizes and latencies are measured in the real runtimes."""

import pytest

from exporter.commands.budgets import accuracy_drop
from exporter.commands.export import export
from exporter.commands.search import compress_within, skeleton
from exporter.errors import RecipeError
from exporter.graph.fitting import fitted
from exporter.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def dataset(trained_mlp, digits):
    return fitted(digits, trained_mlp)


@pytest.mark.parametrize("formats", [("tflite",), ("tflite", "onnx")])
def test_size_is_used_and_not_exceeded(engine, dataset, formats, tmp_path):
    limit = 120_000
    compressed = compress_within(engine, Recipe(max_size=limit, formats=formats), dataset)
    artifacts = export(compressed, tmp_path, formats=formats)
    assert 0.95 * limit <= max(artifact.size for artifact in artifacts) <= limit


def test_size_that_cannot_be_reached_says_what_can(engine, dataset):
    with pytest.raises(RecipeError, match=r"smallest reachable is [\d,]+ bytes"):
        compress_within(engine, Recipe(max_size=1000), dataset)


def test_latency_is_measured(engine, dataset):
    with pytest.raises(RecipeError, match="smallest reachable is about"):
        compress_within(engine, Recipe(max_latency=1e-9), dataset)
    fast_enough = compress_within(engine, Recipe(max_latency=1.0), dataset)
    # Everything is fast enough: nothing need be given up.
    assert fast_enough.model.count_params() > 0.7 * engine.model.count_params()


def test_drop_holds_on_the_validation_data(engine, dataset, trained_mlp):
    compressed = compress_within(engine, Recipe(max_drop=0.02), dataset)
    assert accuracy_drop(trained_mlp, compressed.model, dataset) <= 0.02
    assert compressed.model.count_params() < 0.7 * trained_mlp.count_params()


def test_skeleton_has_the_planned_shapes(planner):
    plan = planner.within("params", planner.params // 3)
    bones, real = skeleton(planner.engine, plan), planner.engine.carry_out(plan)
    assert [w.shape for w in bones.model.weights] == [w.shape for w in real.model.weights]
