"""Budgets, on a small classifier; sizes and latencies are measured in the real runtimes."""

import pytest

from exporter.commands import search
from exporter.commands.budgets import accuracy_drop
from exporter.commands.export import export
from exporter.commands.search import factorize, skeleton
from exporter.errors import RecipeError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.recipe import Recipe


@pytest.fixture(scope="module")
def dataset(trained_mlp, digits):
    return fitted(digits, Network(trained_mlp))


@pytest.mark.one_in(7)
@pytest.mark.parametrize(
    "asked",
    [
        (("tflite", "onnx"), ("none",), 120_000),
        (("tflite",), ("dynamic",), 40_000),
        (("tflite",), ("int8",), 40_000),
        (("tflite",), ("int4",), 25_000),
        (("onnx",), ("dynamic",), 40_000),
        (("onnx",), ("int8",), 40_000),
        (("tflite",), ("none", "dynamic"), 120_000),
    ],
)
def test_size_is_used_and_not_exceeded(engine, digits, dataset, asked, tmp_path):
    formats, quantize, limit = asked
    recipe = Recipe(max_size=limit, formats=formats, quantize=quantize, calibration=50)
    compressed = factorize(engine, recipe, dataset)
    artifacts = export(
        compressed,
        tmp_path,
        formats,
        quantize=quantize,
        data=digits,
        calibration=50,
        granularity="tensor",
    )
    assert 0.95 * limit <= max(artifact.size for artifact in artifacts) <= limit


def test_size_that_cannot_be_reached_says_what_can_and_which_artifact_takes_most(engine, dataset):
    recipe = Recipe(max_size=1000, formats=("tflite", "saved_model"))
    reachable = r"smallest reachable is [\d,]+ bytes, which saved_model in float32 takes\. Raise"
    with pytest.raises(RecipeError, match=reachable):
        factorize(engine, recipe, dataset)


@pytest.mark.slow
def test_latency_is_measured(engine, dataset, monkeypatch):
    monkeypatch.setattr(search, "SEARCH_ROUNDS", 4)
    with pytest.raises(RecipeError, match=r"smallest reachable is about .* s .*which tflite in"):
        factorize(engine, Recipe(max_latency=1e-9), dataset)
    fast_enough = factorize(engine, Recipe(max_latency=1.0), dataset)
    # Everything is fast enough: nothing need be given up.
    assert fast_enough.model.count_params() > 0.7 * engine.network.params


def test_drop_holds_on_the_validation_data(engine, dataset, trained_mlp):
    compressed = factorize(engine, Recipe(max_drop=0.02), dataset)
    assert accuracy_drop(Network(trained_mlp), compressed.network, dataset) <= 0.02
    assert compressed.model.count_params() < 0.7 * trained_mlp.count_params()


def test_skeleton_has_the_planned_shapes(planner):
    plan = planner.within("params", planner.params // 3)
    bones, real = skeleton(planner.engine, plan), planner.engine.factorize(plan)
    assert [w.shape for w in bones.model.weights] == [w.shape for w in real.model.weights]
