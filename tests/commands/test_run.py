"""Runs as a caller of the API sees them; whole runs as processes are in end_to_end."""

import contextlib
import json
import zipfile

import numpy as np
import onnxruntime
import pytest

import exporter
from exporter.commands import alternative, search
from exporter.data import files, lazy
from exporter.formats import FORMATS
from exporter.formats.extras import Extra
from exporter.progress import Silent
from exporter.recipes import READY


@pytest.fixture(scope="module")
def report(model, arrays, tmp_path_factory):
    labels = tmp_path_factory.mktemp("labels") / "labels.txt"
    labels.write_text("dark\nbright\n")
    recipe = exporter.Recipe(
        rank={"deep": 6},
        formats=("tflite", "onnx"),
        output=str(tmp_path_factory.mktemp("run")),
        labels=str(labels),
        description="Tells dark from bright.",
    )
    return exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))


def test_run_writes_what_it_reports(report):
    written = {path.name for path in report.output.iterdir()}
    assert written == {
        *("compressed.keras", "model.tflite", "model.onnx", "reference.npz", "manifest.json"),
        "recipe.yaml",
    }
    assert report.passed
    assert report.exit_code == 0
    for item in report.artifacts:
        assert item.accepted
        assert item.artifact.path.stat().st_size == item.artifact.size
        assert item.ratio > 1
        assert item.latency.baseline.p50 > 0
        assert item.conversion.metrics["probabilities"].samples == 12
    assert json.loads((report.output / "manifest.json").read_text())["passed"] is True


def test_the_recipe_that_was_written_makes_the_same_artifacts(report, model, arrays, tmp_path):
    written = report.output / "recipe.yaml"
    assert exporter.load_recipe(str(written)) == report.recipe
    assert "not in here: the model, data of the run" in written.read_text()
    recipe = exporter.load_recipe(str(written), output=str(tmp_path / "again"))
    again = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    for item in again.artifacts:
        former = report.output / item.artifact.path.name
        assert item.artifact.path.read_bytes() == former.read_bytes()


def test_artifacts_and_manifest_tell_how_to_feed_the_model(report, arrays):
    card = json.loads((report.output / "manifest.json").read_text())["card"]
    assert card == {
        "description": "Tells dark from bright.",
        "normalization": {"image": {"mean": 0, "std": 255, "reverse_channels": False}},
        "labels": {"probabilities": ["dark", "bright"]},
    }
    session = onnxruntime.InferenceSession(str(report.output / "model.onnx"))
    told = session.get_modelmeta().custom_metadata_map
    scale = json.loads(told["normalization"])["image"]
    names = json.loads(told["labels"])["probabilities"]
    images = (arrays["x"] - np.float32(scale["mean"])) / np.float32(scale["std"])
    (probabilities,) = session.run(["probabilities"], {"image": images})
    told_apart = [names[index] for index in probabilities.argmax(axis=1)]
    assert np.mean(np.array(told_apart) == np.array(["dark", "bright"])[arrays["y"]]) > 0.9
    with zipfile.ZipFile(report.output / "model.tflite") as archive:
        assert archive.read("probabilities_labels.txt") == b"dark\nbright"


def test_labels_are_counted_before_any_work(model, arrays, tmp_path):
    (tmp_path / "labels.txt").write_text("dark\n")
    recipe = exporter.Recipe(output=str(tmp_path / "run"), labels=str(tmp_path / "labels.txt"))
    with pytest.raises(exporter.RecipeError, match=r"\(probabilities has 2\)"):
        exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert not (tmp_path / "run").exists()


def test_plan_gives_each_layer_a_reason(report):
    plans = {layer.plan.name: layer.plan for layer in report.layers}
    assert plans["deep"].rank == 6
    assert plans["deep"].params_after == 6 * (48 + 48) + 48
    assert plans["deep"].macs_after == 6 * (48 + 48)
    assert plans["hidden"].rank is None
    assert plans["hidden"].reason == "not named in rank"
    assert report.after.params == sum(plan.params_after for plan in plans.values())
    assert report.after.macs == sum(plan.macs_after for plan in plans.values())


def test_compressed_keras_file_is_what_the_artifacts_predict(report, arrays):
    import keras

    loaded = keras.models.load_model(report.output / "compressed.keras")
    images = (arrays["x"] / 255).astype(np.float32)
    expected = np.asarray(loaded(images))
    for item in report.artifacts:
        fmt = FORMATS[item.format]
        values = fmt.load(item.artifact.path, fmt.backends[0])({"image": images})
        np.testing.assert_allclose(values["probabilities"], expected, rtol=0, atol=1e-6)


def test_former_run_is_kept_unless_forced(report, model, arrays):
    before = {path.name: path.read_bytes() for path in report.output.iterdir() if path.is_file()}
    recipe = exporter.Recipe(rank=4, output=str(report.output))
    with pytest.raises(exporter.OutputError, match="--force"):
        exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert before == {path.name: path.read_bytes() for path in report.output.iterdir()}


def test_unpassable_tolerance_rejects_the_artifact(model, arrays, tmp_path):
    recipe = exporter.Recipe(rank=4, output=str(tmp_path / "run"), atol=0.0, rtol=0.0)
    report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    (item,) = report.artifacts
    assert report.exit_code == 1
    assert not item.accepted
    assert item.artifact.path == tmp_path / "run" / "rejected" / "model.tflite"
    assert item.artifact.path.exists()
    assert not (tmp_path / "run" / "model.tflite").exists()


def test_collapsed_compression_rejects_a_faithful_artifact(arrays, tmp_path):
    import keras

    # All that the output depends on lies in the singular value that rank 1 discards.
    large, small = np.outer(np.ones(64), np.ones(32)), np.zeros((64, 32))
    small[:32, 0], small[32:, 0] = 1, -1
    layers = keras.layers
    kernel = layers.Dense(32, name="wide")
    head = layers.Dense(1, name="y")
    model = keras.Sequential([keras.Input((64,), name="x"), kernel, head])
    kernel.set_weights([100 * large + small, np.zeros(32)])
    weights = np.full((32, 1), -1 / 31)
    weights[0] = 1
    head.set_weights([weights, np.zeros(1)])
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    y = x[:, :32].sum(1) - x[:, 32:].sum(1)
    dataset = exporter.load_dataset({"x": x, "y": y})
    recipe = exporter.Recipe(rank={"wide": 1}, output=str(tmp_path / "run"))
    report = exporter.run(recipe, model=model, dataset=dataset)
    (item,) = report.artifacts
    assert item.conversion.passed or report.compression.outputs[0].collapsed
    assert not report.compression.passed
    assert not item.accepted
    assert report.exit_code == 1


def test_failed_conversion_is_reported_and_the_others_are_written(tmp_path):
    import keras

    inputs = keras.Input((24,), name="x")
    model = keras.Model(inputs, keras.ops.erf(keras.layers.Dense(24, name="project")(inputs)))
    recipe = exporter.Recipe(
        rank={"project": 4}, data="none", formats=("tflite", "onnx"), output=str(tmp_path / "run")
    )
    report = exporter.run(recipe, model=model)
    failed, written = report.artifacts
    assert report.exit_code == 3
    assert "Only builtin operators are allowed; replace the layers" in failed.error
    assert written.accepted
    assert written.artifact.path.exists()


@pytest.fixture
def kinds(arrays, tmp_path, monkeypatch):
    """The same images in a large file, in folders, and as a pipeline."""
    import tensorflow as tf

    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    np.savez(tmp_path / "large.npz", **arrays)
    for number, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        folder = tmp_path / "folder" / ("0 dark", "1 bright")[label]
        folder.mkdir(parents=True, exist_ok=True)
        encoded = tf.io.encode_png(image[..., np.newaxis])
        (folder / f"{number}.png").write_bytes(encoded.numpy())
    pipeline = tf.data.Dataset.from_tensor_slices((arrays["x"], arrays["y"]))
    return {
        "large": str(tmp_path / "large.npz"),
        "folder": str(tmp_path / "folder"),
        "pipeline": {"train": pipeline},
    }


GOALS = {"large": {"rank": 4}, "folder": {"rank": 4}, "pipeline": {"max_drop": 0.5}}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", GOALS)
def test_run_on_data_that_are_not_in_memory(kinds, kind, model, tmp_path, monkeypatch):
    # Nothing is small enough to be read into memory as a whole.
    monkeypatch.setattr(lazy, "HELD_BYTES", 0)
    monkeypatch.setattr(search, "SEARCH_ROUNDS", 2)
    dataset = exporter.load_dataset(kinds[kind])
    recipe = exporter.Recipe(output=str(tmp_path / "run"), **GOALS[kind])
    report = exporter.run(recipe, model=model, dataset=dataset)
    (item,) = report.artifacts
    assert item.conversion.passed
    assert item.conversion.metrics["probabilities"].samples == 12
    assert report.samples == {"train": 43, "validation": 5, "test": 12}
    assert "image: values of 0 to 255, scaled to [0, 1]" in report.data_notes[-1]


def test_a_baseline_that_knows_nothing_of_the_labels_is_refused_before_any_work(
    model, arrays, tmp_path
):
    arrays = {**arrays, "y": 1 - arrays["y"]}
    choices = {"rank": 4, "formats": ("saved_model",), "output": str(tmp_path / "run")}
    with pytest.raises(exporter.DataError, match="no better than a constant") as caught:
        exporter.run(exporter.Recipe(**choices), model=model, dataset=exporter.load_dataset(arrays))
    assert "stand in another order" in str(caught.value)
    assert "--allow-poor-baseline" in str(caught.value)
    assert not (tmp_path / "run").exists()
    recipe = exporter.Recipe(**choices, allow_poor_baseline=True)
    assert exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays)).artifacts


class Stages(Silent):
    """Remembers the stages that are told."""

    def __init__(self):
        self.seen = []

    def track(self, label, total):
        self.seen.append(label)
        return super().track(label, total)


def test_rank_none_leaves_the_network_whole_and_does_not_calibrate_a_cut(model, arrays, tmp_path):
    recipe = exporter.Recipe(
        rank="none", formats=("tflite",), quantize=("none", "int8"), output=str(tmp_path / "run")
    )
    stages = Stages()
    report = exporter.run(
        recipe, model=model, dataset=exporter.load_dataset(arrays), progress=stages
    )
    assert report.before == report.after
    assert {layer.plan.rank for layer in report.layers} == {None}
    assert [item.artifact.variant for item in report.artifacts] == ["float32", "int8"]
    assert report.passed
    assert report.artifacts[1].artifact.size < report.artifacts[0].artifact.size
    assert "Calibrating" not in stages.seen


def test_a_run_without_some_channels_tells_of_them_and_proves_its_artifacts(
    model, arrays, tmp_path
):
    recipe = exporter.Recipe(
        rank="none",
        channels=0.5,
        finetune=1,
        report=True,
        formats=("tflite", "onnx"),
        quantize=("none", "int8"),
        output=str(tmp_path / "run"),
    )
    report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert report.passed
    assert report.after.params <= 0.5 * report.before.params
    assert report.removed == 96 - sum(group.after for group in report.channels) > 0
    assert [group.layers for group in report.channels] == [("hidden",), ("deep",)]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [group["after"] for group in manifest["channels"]] == [
        group.after for group in report.channels
    ]
    assert all(item["alternative"] for item in manifest["artifacts"]), "beside the whole network"
    for name in ("report.html", "report.md"):
        assert "Units and filters" in (tmp_path / "run" / name).read_text() or name != "report.html"
        assert "Channels" in (tmp_path / "run" / name).read_text()


def test_model_is_given_once(model):
    with pytest.raises(exporter.RecipeError, match="not both"):
        exporter.run(exporter.Recipe(model="x.keras"), model=model)


def test_a_format_that_lacks_its_extra_is_refused_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS["c"], "extra", Extra("micro", ("no-such-distribution",)))
    recipe = exporter.Recipe(formats=("c",), output=str(tmp_path / "out"))
    for call in (
        lambda: exporter.run(recipe, model=model),
        lambda: exporter.export(model, tmp_path / "out", formats=("c",)),
    ):
        with pytest.raises(exporter.RecipeError, match="'c' needs the extra 'micro'"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def beside(model, arrays, tmp_path_factory):
    recipe = exporter.Recipe(
        rank={"deep": 6},
        quantize=("none", "int8"),
        keep_baseline=True,
        output=str(tmp_path_factory.mktemp("run")),
    )
    return exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))


def test_artifacts_stand_beside_the_uncompressed_network_in_their_variant(
    beside, model, arrays, tmp_path
):
    whole = exporter.run(
        exporter.Recipe(rank="none", quantize=("none", "int8"), output=str(tmp_path)),
        model=model,
        dataset=exporter.load_dataset(arrays),
    )
    for item, alone in zip(beside.artifacts, whole.artifacts, strict=True):
        assert alone.alternative is None
        kept = beside.output / "uncompressed" / alone.artifact.path.name
        assert kept.read_bytes() == alone.artifact.path.read_bytes()
        assert item.alternative.size == alone.artifact.size
        assert item.alternative.standings == alone.conversion.standings
        assert item.alternative.validation == alone.validation
        assert item.alternative.latency.p50 > 0
    assert beside.artifacts[0].alternative.size == beside.artifacts[0].baseline_size
    exact = beside.artifacts[0].alternative.standings["probabilities"]
    assert exact.snr_db > 100
    assert exact.top1_agreement == 1
    lossy = beside.artifacts[0].conversion.standings["probabilities"]
    assert lossy.snr_db == pytest.approx(beside.compression.outputs[0].snr_db, abs=0.1)


def test_artifacts_are_measured_on_validation_data_as_well(model, arrays, tmp_path):
    x, y = arrays["x"], arrays["y"]
    wrong = np.arange(10) < 3
    parts = {
        **{"x_train": x[:30], "y_train": y[:30], "x_test": x[40:], "y_test": y[40:]},
        **{"x_val": x[30:40], "y_val": np.where(wrong, 1 - y[30:40], y[30:40])},
    }
    found = exporter.run(
        exporter.Recipe(rank={"deep": 6}, quantize=("int8",), output=str(tmp_path)),
        model=model,
        dataset=exporter.load_dataset(parts),
    )
    (item,) = found.artifacts
    for standings in (item.validation, item.alternative.validation):
        held = standings["probabilities"]
        assert held.samples == 10
        assert held.metric.value == held.baseline.value == pytest.approx(0.7)
    assert item.conversion.standings["probabilities"].metric.value == 1


@pytest.mark.slow
def test_folders_stand_beside_those_of_the_uncompressed_network(model, arrays, installed, tmp_path):
    installed("c")
    recipe = exporter.Recipe(
        rank={"deep": 6}, formats=("c",), quantize=("int8",), output=str(tmp_path / "run")
    )
    (item,) = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays)).artifacts
    assert item.accepted
    assert item.alternative.size > item.artifact.size


@pytest.mark.slow
def test_alternatives_are_made_once(beside, model, arrays, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(alternative, "keep", lambda key, path: made.append(path.name))

    def run(name, **options):
        recipe = exporter.Recipe(keep_baseline=True, output=str(tmp_path / name), **options)
        report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
        assert all(item.alternative.latency.p50 > 0 for item in report.artifacts)
        return tmp_path / name / "uncompressed"

    again = run("again", rank={"deep": 5}, quantize=("int8",))
    assert made == []
    for path in again.iterdir():
        assert path.read_bytes() == (beside.output / "uncompressed" / path.name).read_bytes()
    run("other", rank={"deep": 5}, quantize=("int8",), ranges="minmax")
    assert sorted(made) == ["model-int8.tflite", "model.tflite"]


def test_kept_alternatives_are_files_of_the_run(beside):
    manifest = json.loads((beside.output / "manifest.json").read_text())
    files = {file["path"]: file["bytes"] for file in manifest["files"]}
    for path in (beside.output / "uncompressed").iterdir():
        assert files[f"uncompressed/{path.name}"] == path.stat().st_size
    assert "uncompressed" in manifest["entries"]


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_ready_recipes_run(name, model, arrays, installed, tmp_path):
    if name == "microcontroller":
        installed("c")
    recipe = exporter.load_recipe(name, output=str(tmp_path / "run"), finetune=1)
    with contextlib.chdir(tmp_path):
        report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert all(item.artifact for item in report.artifacts)
    files = {path.name for path in report.output.iterdir()}
    if name == "study":
        assert {"truncated.keras", "updated.keras", "training.png", "uncompressed"} <= files
