"""A new run against an old one, by manifests as runs write them."""

import copy
import json

import pytest

import exporter
from exporter.cli import main
from exporter.errors import InputError, RecipeError


def artifact(variant, value, name="accuracy", samples=2000):
    metric = {"name": name, "value": value, "samples": samples}
    standing = {"samples": samples, "snr_db": 30.0, "top1_agreement": 0.9, "metric": metric}
    return {
        "format": "tflite",
        "variant": variant,
        "accepted": True,
        "error": None,
        "file": {"path": f"model-{variant}.tflite", "size": 100_000},
        "latency": {"compressed": {"p50": 1e-3}},
        "conversion": {"standings": {"y": standing}},
    }


OLD = [artifact("float32", 0.96), artifact("int8", 0.95)]


@pytest.fixture
def write(tmp_path):
    def write(name, artifacts):
        file = tmp_path / name
        file.write_text(json.dumps({"schema_version": 2, "files": [], "artifacts": artifacts}))
        return file

    return write


def judged(write, change, old=OLD, **limits):
    """Compares with a copy of the old artifacts in which the second one was changed."""
    new = copy.deepcopy(old)
    change(new)
    return exporter.compare(write("old.json", old), write("new.json", new), **limits)


def accuracy(value):
    def change(new):
        new[1]["conversion"]["standings"]["y"]["metric"]["value"] = value

    return change


def size(value):
    return lambda new: new[1]["file"].update(size=value)


def latency(value):
    return lambda new: new[1]["latency"]["compressed"].update(p50=value)


def without_labels(new):
    new[1]["conversion"]["standings"]["y"].update(metric=None)


def unconverted(new):
    new[1].update(accepted=False, error="no kernel", file=None, latency=None, conversion=None)


@pytest.mark.parametrize(
    ("change", "limits"),
    [
        (lambda new: None, {"max_loss": 0, "max_growth": 0, "max_slowdown": 0}),
        (accuracy(0.99), {}),
        (accuracy(0.943), {}),  # Two standard errors are 0.97 points.
        (accuracy(0.94), {"max_loss": "1%"}),
        (size(101_900), {}),
        (size(110_000), {"max_growth": 0.1}),
        (latency(1.0), {}),
        (latency(1.09e-3), {"max_slowdown": "10%"}),
        (lambda new: new.append({**new[1], "variant": "dynamic"}), {}),
    ],
)
def test_what_is_within_the_limits_passes(write, change, limits):
    found = judged(write, change, **limits)
    assert found.passed
    assert [pair.reasons for pair in found.pairs] == [(), ()]


@pytest.mark.parametrize(
    ("change", "limits", "told"),
    [
        (accuracy(0.94), {}, "accuracy of y lost 1.00%, at most 0.97% allowed"),
        (accuracy(0.948), {"max_loss": 0.001}, "lost 0.20%, at most 0.10% allowed"),
        (size(103_000), {}, "size grew by 3.00%, at most 2.00% allowed"),
        (latency(1.2e-3), {"max_slowdown": 0.1}, "latency grew by 20.00%, at most 10.00%"),
        (lambda new: new.pop(), {}, "it is missing in the new run"),
        (lambda new: new[1].update(accepted=False), {}, "did not pass its verdicts in the new"),
        (unconverted, {}, "was not converted: no kernel in the new run"),
        (without_labels, {}, "does not tell its accuracy of y"),
        (lambda new: new[1].update(latency=None), {"max_slowdown": 9}, "not tell its latency"),
    ],
)
def test_what_falls_behind_fails_with_a_reason(write, change, limits, told):
    found = judged(write, change, **limits)
    assert not found.passed
    first, second = found.pairs
    assert first.reasons == ()
    assert told in "; ".join(second.reasons)


def test_few_samples_allow_more_and_errors_and_agreements_are_judged_as_such(write):
    few = [artifact("float32", 0.9, samples=100)] * 2
    assert judged(write, accuracy(0.85), few).passed
    assert not judged(write, accuracy(0.83), few).passed
    errors = [artifact("float32", 0.9, name="mse")] * 2
    errors = [errors[0], {**errors[1], "variant": "int8"}]
    assert judged(write, accuracy(0.94), errors).passed
    assert judged(write, accuracy(0.1), errors).passed
    assert not judged(write, accuracy(0.95), errors).passed
    unlabelled = copy.deepcopy(OLD)
    for each in unlabelled:
        each["conversion"]["standings"]["y"]["metric"] = None
    assert judged(write, lambda new: None, unlabelled).passed

    def disagree(new):
        new[1]["conversion"]["standings"]["y"]["top1_agreement"] = 0.5

    found = judged(write, disagree, unlabelled)
    assert "agreement of y lost 40.00%" in found.pairs[1].reasons[0]


def test_what_failed_before_is_not_held_against_the_new_run(write):
    old = copy.deepcopy(OLD)
    unconverted(old)
    found = judged(write, lambda new: None, old)
    assert found.passed
    assert found.pairs[1].file == "tflite int8"


@pytest.mark.parametrize(
    ("artifacts", "told"),
    [
        (3, "without the lists 'files' and 'artifacts'"),
        ([], "tells of no artifacts"),
        ([{"format": 1}], "tells of an artifact that cannot be read"),
        ([{**OLD[0], "file": 3}], "tells of an artifact that cannot be read"),
    ],
)
def test_what_is_no_manifest_is_refused(write, artifacts, told):
    good, bad = write("good.json", OLD), write("bad.json", artifacts)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(InputError, match=told):
            exporter.compare(*pair)
    with pytest.raises(RecipeError, match="max_growth must be a number of at least 0"):
        exporter.compare(good, good, max_growth=-1)


def test_the_command_prints_a_table_and_tells_by_its_exit_code(write, capfd):
    old, new = write("old.json", OLD), write("new.json", OLD[:1])
    assert main(["compare", str(old), str(old)]) == 0
    printed = capfd.readouterr().out
    assert "falls behind in nothing" in printed
    assert "--max-slowdown" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(["compare", str(old), str(new), "--max-slowdown=5%"]) == 1
    printed = capfd.readouterr().out
    assert "model-int8.tflite: FAILED; it is missing in the new run" in printed
    assert "THE NEW RUN FALLS BEHIND." in printed
    assert main(["compare", str(old), str(new), "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert [pair["passed"] for pair in found["pairs"]] == [True, False]
