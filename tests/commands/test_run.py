"""Runs as a caller of the API sees them; whole runs as processes are in end_to_end."""

import json
import zipfile

import numpy as np
import onnxruntime
import pytest

import exporter
from exporter.data import files, lazy
from exporter.errors import DataError
from exporter.formats import FORMATS
from exporter.formats.extras import Extra


@pytest.fixture(scope="module")
def arrays():
    """Dark and bright images."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    images = rng.integers(0, 128, (60, 8, 8)) + 128 * y[:, np.newaxis, np.newaxis]
    return {"x": images.astype(np.uint8), "y": y}


@pytest.fixture(scope="module")
def model(arrays):
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="image"),
            layers.Flatten(),
            layers.Dense(48, activation="relu", bias_initializer="normal", name="hidden"),
            layers.Dense(48, activation="relu", bias_initializer="normal", name="deep"),
            layers.Dense(2, activation="softmax", name="probabilities"),
        ],
        name="little",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(arrays["x"] / 255, arrays["y"], epochs=8, batch_size=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def report(model, arrays, tmp_path_factory):
    labels = tmp_path_factory.mktemp("labels") / "labels.txt"
    labels.write_text("dark\nbright\n")
    recipe = exporter.Recipe.of(
        rank={"deep": 6},
        formats=("tflite", "onnx"),
        output=str(tmp_path_factory.mktemp("run")),
        labels=str(labels),
        description="Tells dark from bright.",
    )
    return exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))


def test_run_writes_what_it_reports(report):
    written = {path.name for path in report.output.iterdir()}
    assert written == {"compressed.keras", "model.tflite", "model.onnx", "manifest.json"}
    assert report.passed
    assert report.exit_code == 0
    for item in report.artifacts:
        assert item.accepted
        assert item.artifact.path.stat().st_size == item.artifact.size
        assert item.ratio > 1
        assert item.latency.baseline.p50 > 0
        assert item.conversion.metrics["probabilities"].samples == 12
    assert json.loads((report.output / "manifest.json").read_text())["passed"] is True


def test_artifacts_and_manifest_tell_how_to_feed_the_model(report, arrays):
    card = json.loads((report.output / "manifest.json").read_text())["card"]
    assert card == {
        "description": "Tells dark from bright.",
        "normalization": {"image": {"mean": 0, "std": 255}},
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
    recipe = exporter.Recipe.of(output=str(tmp_path / "run"), labels=str(tmp_path / "labels.txt"))
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
    recipe = exporter.Recipe.of(rank=4, output=str(report.output))
    with pytest.raises(exporter.OutputError, match="--force"):
        exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert before == {path.name: path.read_bytes() for path in report.output.iterdir()}


def test_unpassable_tolerance_rejects_the_artifact(model, arrays, tmp_path):
    recipe = exporter.Recipe.of(rank=4, output=str(tmp_path / "run"), atol=0.0, rtol=0.0)
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
    recipe = exporter.Recipe.of(rank={"wide": 1}, output=str(tmp_path / "run"))
    report = exporter.run(recipe, model=model, dataset=dataset)
    (item,) = report.artifacts
    assert item.conversion.passed or report.compression.outputs[0].collapsed
    assert not report.compression.passed
    assert not item.accepted
    assert report.exit_code == 1


def test_failed_conversion_is_reported_and_the_others_are_written(tmp_path):
    import keras

    inputs = keras.Input((6, 4), name="sequence")
    hidden = keras.layers.Dense(24, name="project")(keras.layers.LSTM(24, name="lstm")(inputs))
    model = keras.Model(inputs, hidden)
    recipe = exporter.Recipe.of(
        rank={"project": 4}, data="none", formats=("tflite", "onnx"), output=str(tmp_path / "run")
    )
    report = exporter.run(recipe, model=model)
    failed, written = report.artifacts
    assert report.exit_code == 3
    assert "unroll=True" in failed.error
    assert written.accepted
    assert written.artifact.path.exists()


@pytest.fixture
def kinds(arrays, tmp_path, monkeypatch):
    """The same images in a large file, in folders, and as a pipeline."""
    import tensorflow as tf

    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    np.savez(tmp_path / "large.npz", **arrays)
    for number, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        folder = tmp_path / "folder" / ("dark", "bright")[label]
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


@pytest.mark.parametrize("kind", GOALS)
def test_run_on_data_that_are_not_in_memory(kinds, kind, model, tmp_path, monkeypatch):
    # Nothing is small enough to be read into memory as a whole.
    monkeypatch.setattr(lazy, "HELD_BYTES", 0)
    dataset = exporter.load_dataset(kinds[kind])
    recipe = exporter.Recipe.of(output=str(tmp_path / "run"), **GOALS[kind])
    report = exporter.run(recipe, model=model, dataset=dataset)
    (item,) = report.artifacts
    assert item.conversion.passed
    assert item.conversion.metrics["probabilities"].samples == 12
    assert report.samples == {"train": 43, "validation": 5, "test": 12}
    assert report.data_notes[-1] == "image: uint8 images are scaled to [0, 1]"


def test_export_then_verify_compressed_objects(model, arrays, tmp_path):
    compressed = exporter.compress(model, rank=6)
    artifacts = exporter.export(compressed, tmp_path / "out", formats=["onnx", "saved_model"])
    assert [artifact.path.name for artifact in artifacts] == ["model.onnx", "saved_model"]
    verdict = exporter.verify(artifacts[0], compressed, data=exporter.load_dataset(arrays))
    assert verdict.passed
    assert len(verdict.structure.layers) == 2
    by_path = exporter.verify(str(artifacts[1].path), compressed.model)
    assert by_path.passed


def test_artifact_of_another_model_is_not_verified(model, tmp_path):
    (artifact,) = exporter.export(exporter.compress(model, rank=6), tmp_path)
    verdict = exporter.verify(artifact, exporter.compress(model, rank=7))
    assert not verdict.passed
    assert not verdict.parity.passed
    assert not verdict.structure.passed


def test_export_quantizes_by_the_data(model, arrays, tmp_path):
    compressed = exporter.compress(model, rank=4)
    data = exporter.load_dataset(arrays)
    plain, artifact = exporter.export(
        compressed, tmp_path / "out", data=data, quantize=("none", "int8"), io_type="uint8"
    )
    assert artifact.path.name == "model-int8.tflite"
    assert (plain.variant, artifact.variant) == ("float32", "int8")
    assert [info.dtype for info in artifact.inputs] == ["uint8"]
    assert all(info.quantization.scale > 0 for info in (*artifact.inputs, *artifact.outputs))
    verdict = exporter.verify(str(artifact.path), compressed, data=data)
    assert verdict.parity is None
    assert verdict.quality.limits.snr_db > 0
    assert {output.backend for output in verdict.quality.outputs} == {"xnnpack", "reference"}


def test_variant_that_is_calibrated_needs_data(model, tmp_path):
    with pytest.raises(DataError, match="calibrates ranges of activations on a training part"):
        exporter.export(model, tmp_path / "out", quantize=("int8",))
    recipe = exporter.Recipe.of(quantize=("int8",), data="none", output=str(tmp_path / "out"))
    with pytest.raises(DataError, match="'none' without one"):
        exporter.run(recipe, model=model)
    assert not (tmp_path / "out").exists()


def test_export_takes_a_card(model, tmp_path):
    labels = {"probabilities": ("dark", "bright")}
    card = exporter.ModelCard("Sorts.", {"image": exporter.Normalization(std=255)}, labels)
    (artifact,) = exporter.export(model, tmp_path, card=card)
    assert zipfile.ZipFile(artifact.path).namelist() == ["probabilities_labels.txt"]
    wrong = exporter.ModelCard(labels={"probabilities": ("dark",)})
    with pytest.raises(exporter.InputError, match="Received: 1 for 'probabilities'"):
        exporter.export(model, tmp_path / "other", card=wrong)
    assert not (tmp_path / "other").exists()


def test_export_keeps_what_is_there(model, tmp_path):
    (tmp_path / "model.tflite").write_text("mine")
    with pytest.raises(exporter.OutputError, match=r"model\.tflite"):
        exporter.export(model, tmp_path)
    assert (tmp_path / "model.tflite").read_text() == "mine"
    (artifact,) = exporter.export(model, tmp_path, force=True)
    assert artifact.size > 1000


def test_verify_names_the_formats_for_a_foreign_file(model, tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(exporter.InputError, match="tflite, onnx"):
        exporter.verify(tmp_path / "model.bin", model)


def test_model_is_given_once(model):
    with pytest.raises(exporter.RecipeError, match="not both"):
        exporter.run(exporter.Recipe.of(model="x.keras"), model=model)


def test_a_format_that_lacks_its_extra_is_refused_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS["c"], "extra", Extra("micro", ("no-such-distribution",)))
    recipe = exporter.Recipe.of(formats=("c",), output=str(tmp_path / "out"))
    for call in (
        lambda: exporter.run(recipe, model=model),
        lambda: exporter.export(model, tmp_path / "out", formats=("c",)),
    ):
        with pytest.raises(exporter.RecipeError, match="'c' needs the extra 'micro'"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_c_source_is_verified_from_its_folder(model, arrays, installed, tmp_path):
    installed("c")
    (artifact,) = exporter.export(
        model, tmp_path, formats=("c",), quantize=("int8",), data=exporter.load_dataset(arrays)
    )
    verdict = exporter.verify(tmp_path / "c-int8", model, data=exporter.load_dataset(arrays))
    assert verdict.passed
    assert artifact.figures["arena_bytes"] > 0
