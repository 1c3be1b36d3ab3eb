"""Budgets, on a small classifier; sizes and latencies are measured in the real runtimes."""

import pytest

from exporter.commands import search, trials
from exporter.commands.budgets import accuracy_drop
from exporter.commands.export import export
from exporter.commands.search import factorize
from exporter.commands.trials import skeleton
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.ranks.costs import PARAMS, MacCosts
from exporter.recipe import Recipe
from exporter.targets import TARGETS
from exporter.targets.base import Subject


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
    with pytest.raises(RecipeError, match=r"reachable on 'here' is about .* µs, which tflite in"):
        factorize(engine, Recipe(max_latency=1e-9), dataset)
    fast_enough = factorize(engine, Recipe(max_latency=1.0), dataset)
    # Everything is fast enough: nothing is given up.
    assert fast_enough.model.count_params() == engine.network.params


def test_drop_holds_on_the_validation_data(engine, dataset, trained_mlp):
    compressed = factorize(engine, Recipe(max_drop=0.02), dataset)
    assert accuracy_drop(Network(trained_mlp), compressed.network, dataset) <= 0.02
    assert compressed.model.count_params() < 0.7 * trained_mlp.count_params()


def test_a_drop_is_spent_on_what_costs_least_on_the_target(engine, dataset, trained_mlp):
    compressed = factorize(engine, Recipe(max_drop=0.02, target="macs"), dataset)
    assert accuracy_drop(Network(trained_mlp), compressed.network, dataset) <= 0.02
    assert compressed.network.macs < 0.7 * engine.network.macs


def test_where_low_rank_gains_nothing_all_layers_stay_whole(engine, dataset, listener, monkeypatch):
    monkeypatch.setattr(trials, "LEAST_GAIN", 0.999)
    compressed = factorize(engine, Recipe(max_drop=0.02, target="macs"), dataset, listener)
    assert not compressed.factors
    assert listener.notes == ["Low rank costs no less on macs: all layers stay whole"]


def test_ranks_that_cost_more_are_taken_where_a_budget_needs_them(
    engine, dataset, listener, monkeypatch
):
    class Dear(MacCosts):
        def of(self, candidate, rank):
            return super().of(candidate, None) + (rank is not None)

    monkeypatch.setattr(trials.Trials, "costs", lambda *_: Dear(0))
    recipe = Recipe(max_params="50%", target="macs")
    compressed = factorize(engine, recipe, dataset, listener)
    assert compressed.network.params <= engine.network.params / 2
    assert any("ranks that cost more are taken" in note for note in listener.notes)


@pytest.mark.slow
def test_instructions_are_counted(arm64, engine, dataset, tmp_path):
    limit = {"max_instructions": 20_000, "target": "arm64"}
    compressed = factorize(engine, Recipe(**limit), dataset)
    fmt, path = FORMATS["tflite"], tmp_path / "model.tflite"
    fmt.export(compressed.network, path, ExportOptions())
    subject = Subject(path, compressed.network)
    (cost,) = TARGETS["arm64"].measure(fmt, [subject], {}, detailed=False)
    assert 0.85 * 20_000 < cost.value <= 20_000
    with pytest.raises(RecipeError, match=r"smallest reachable on 'arm64' is about .* k instr"):
        factorize(engine, Recipe(max_instructions=10, target="arm64"), dataset)


def test_skeleton_has_the_planned_shapes(planner):
    plan = planner.within(PARAMS, planner.whole() // 3)
    bones, real = skeleton(planner.engine, plan), planner.engine.factorize(plan)
    assert [w.shape for w in bones.model.weights] == [w.shape for w in real.model.weights]
