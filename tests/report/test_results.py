from dataclasses import replace
from types import SimpleNamespace

import pytest

from exporter.data.metrics import Metric
from exporter.formats.base import Artifact
from exporter.recipe import Recipe
from exporter.report.results import (
    Alternative,
    ArtifactReport,
    Budget,
    LatencyPair,
    LayerReport,
    Report,
    TargetCost,
)
from exporter.targets.base import Cost
from exporter.targets.latency import Latency
from exporter.verification.compression import CompressionVerdict, OutputCompression
from exporter.verification.verdict import ConversionVerdict, Standing


def test_budget_is_held_up_to_its_limit():
    assert Budget("max_size", 100, 100).held
    assert not Budget("max_size", 100, 101).held
    assert not Budget("max_latency", 1.0, float("inf")).held


def standing(accuracy=None, agreement=None, snr=20.0):
    metric = None if accuracy is None else Metric("accuracy", accuracy, 100)
    return Standing(100, snr, agreement, metric, metric)


def beside(path, own, other, *, size=100, microseconds=10.0):
    """Returns an artifact of 100 bytes and 10 us whose alternative has the figures given."""
    timed = [Latency(1e-6 * value, 1e-6 * value, 9) for value in (10.0, microseconds)]
    return ArtifactReport(
        "tflite",
        "int8",
        Artifact("tflite", "int8", path, 100, "0" * 64, (), ()),
        ConversionVerdict(None, None, {"out": own}),
        latency=LatencyPair(timed[0], timed[0]),
        alternative=Alternative(size, {"out": other}, {}, timed[1]),
    )


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (standing(0.9, 0.99), standing(0.9, 0.5)),  # Labels count most,
        (standing(agreement=0.9, snr=30), standing(agreement=0.9, snr=20)),  # then classes,
        (standing(snr=20), standing(snr=21)),  # then values.
    ],
)
def test_artifact_is_dominated_by_an_alternative_that_is_worse_in_nothing(own, other, tmp_path):
    item = beside(tmp_path, own, other)
    assert item.is_dominated
    assert beside(tmp_path, own, other, size=99, microseconds=10.4).is_dominated
    assert not beside(tmp_path, own, other, size=101).is_dominated
    assert not beside(tmp_path, own, other, microseconds=11).is_dominated
    assert not replace(item, alternative=None).is_dominated
    assert not beside(tmp_path, own, replace(other, samples=8)).is_dominated


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (standing(0.91), standing(0.9)),
        (standing(agreement=0.9, snr=20), standing(agreement=0.89, snr=30)),
        (standing(snr=21), standing(snr=20)),
    ],
)
def test_artifact_with_better_outputs_is_not_dominated(own, other, tmp_path):
    assert not beside(tmp_path, own, other, size=1, microseconds=1).is_dominated


@pytest.mark.parametrize(
    ("metric", "before", "after", "warned"),
    [
        ("accuracy", 0.95, 0.92, True),
        ("accuracy", 0.95, 0.94, False),
        ("mse", 1.0, 1.05, False),
        ("mse", 1.0, 1.15, True),
    ],
)
def test_quantization_is_warned_of_by_the_rule_for_its_figure(metric, before, after, warned):
    compressed, artifact = (Metric(metric, value, 100) for value in (before, after))
    output = OutputCompression("y", 100, 30.0, None, compressed, compressed, None, False)
    conversion = SimpleNamespace(quality=True, metrics={"y": artifact})
    report = SimpleNamespace(
        partial=False,
        samples={},
        drawing_error=None,
        tracking_error=None,
        compression=CompressionVerdict((output,), True),
        layers=(),
        artifacts=[
            SimpleNamespace(label="model-int8.tflite", conversion=conversion, is_dominated=False)
        ],
    )
    warnings = Report.warnings.fget(report)
    assert [w.partition(";")[0] for w in warnings] == warned * [
        "Quantization costs model-int8.tflite much of y"
    ]


def test_outputs_that_the_alternative_lacks_are_left_out(tmp_path):
    item = beside(tmp_path, standing(0.9), standing(0.8))
    assert set(item.standings) == {"out"}
    assert replace(item, alternative=replace(item.alternative, standings={})).standings == {}


def test_layers_that_cost_more_factorized_are_warned_of():
    def layer(name, before, after):
        plan = SimpleNamespace(name=name)
        return LayerReport(plan, cost_before=before, cost_after=after)

    layers = (layer("dear", 10.0, 11.0), layer("cheap", 10.0, 9.0), layer("whole", None, None))
    report = SimpleNamespace(
        partial=False,
        samples={},
        drawing_error=None,
        tracking_error=None,
        compression=CompressionVerdict((), True),
        layers=layers,
        artifacts=(),
        recipe=Recipe(target="macs"),
    )
    (warning,) = Report.warnings.fget(report)
    assert "On macs these layers cost more factorized than whole: dear." in warning


@pytest.mark.parametrize(("samples", "warned"), [({"test": 1}, 1), ({"test": 2}, 0), ({}, 0)])
def test_what_rests_on_one_sample_is_told(accepted, samples, warned):
    report = replace(accepted, samples=samples)
    assert sum("has one sample" in warning for warning in report.warnings) == warned


@pytest.mark.parametrize(("own", "dominated"), [(99.0, False), (100.0, True)])
def test_costs_on_the_target_decide_in_place_of_latencies(own, dominated, tmp_path):
    item = beside(tmp_path, standing(0.9), standing(0.9), microseconds=1000.0)
    cost = TargetCost("arm64", Cost(own), Cost(100.0))
    assert replace(item, target_cost=cost).is_dominated is dominated
