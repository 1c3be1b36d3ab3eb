import os
import shutil

import numpy as np
import pytest

import exporter
from exporter.formats import FORMATS


def test_export_then_verify_compressed_objects(model, arrays, tmp_path):
    compressed = exporter.compress(model, rank=6)
    artifacts = exporter.export(compressed, tmp_path / "out", formats=["onnx", "saved_model"])
    assert [artifact.path.name for artifact in artifacts] == ["model.onnx", "saved_model"]
    verdict = exporter.verify(artifacts[0], compressed, data=exporter.load_dataset(arrays))
    assert verdict.passed
    assert len(verdict.structure.layers) == 2
    by_path = exporter.verify(str(artifacts[1].path), compressed.model, data=arrays)
    assert by_path.passed


def test_artifact_of_another_model_is_not_verified(model, tmp_path):
    (artifact,) = exporter.export(exporter.compress(model, rank=6), tmp_path)
    verdict = exporter.verify(artifact, exporter.compress(model, rank=7))
    assert not verdict.passed
    assert not verdict.parity.passed
    assert not verdict.structure.passed


@pytest.fixture(scope="module")
def exported(model, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    formats, quantize = ("saved_model", "tflite", "onnx"), ("none", "int8")
    exporter.export(model, folder, formats=formats, quantize=quantize, io_type="int8", data=arrays)
    return folder


def another(inputs, output="probabilities"):
    import keras

    given = [keras.Input(shape, name=name) for name, shape in inputs.items()]
    flat = [keras.layers.Flatten()(each) for each in given]
    joined = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(given, keras.layers.Dense(2, name=output)(joined))


@pytest.mark.parametrize(
    "file", ["saved_model", "model.tflite", "model-int8.tflite", "model.onnx", "model-int8.onnx"]
)
def test_artifact_of_other_inputs_or_outputs_fails_and_both_are_told(exported, file):
    for inputs, output in [
        ({"sensors": (8, 8)}, "probabilities"),
        ({"image": (8, 7)}, "probabilities"),
        ({"image": (64,)}, "probabilities"),
        ({"image": (8, 8), "sensors": (3,)}, "probabilities"),
        ({"image": (8, 8)}, "scores"),
    ]:
        verdict = exporter.verify(exported / file, another(inputs, output))
        assert not verdict.passed
        assert "no artifact of this model: it takes 'image' (any, 8, 8) and" in verdict.error
        for name, shape in inputs.items():
            assert f"{name!r} (any, {', '.join(map(str, shape))})" in verdict.error
        assert f"{output!r} (any, 2). Give the model" in verdict.error


def test_artifact_of_more_inputs_fails_and_both_are_told(model, tmp_path):
    inputs = {"image": (8, 8), "sensors": (3,)}
    (artifact,) = exporter.export(another(inputs), tmp_path, formats=("tflite",))
    verdict = exporter.verify(artifact, model)
    assert "takes 'image' (any, 8, 8), 'sensors' (any, 3) and" in verdict.error
    assert "the model takes 'image' (any, 8, 8) and" in verdict.error


@pytest.mark.parametrize("file", ["bad.tflite", "bad.onnx"])
def test_damaged_artifact_fails(model, file, tmp_path):
    (tmp_path / file).write_bytes(b"neither one nor the other")
    verdict = exporter.verify(tmp_path / file, model)
    assert not verdict.passed
    assert verdict.error.startswith(f"It cannot be read as {file[4:]}: ")


@pytest.mark.parametrize("file", ["saved_model", "model.tflite", "model-int8.onnx"])
def test_artifact_is_parsed_in_a_process_of_its_own(exported, model, file, monkeypatch):
    def unsafe(self, path):
        raise AssertionError(path)

    for fmt in map(type, FORMATS.values()):
        for name in ("read_interface", "stored_tensors", "fixed_batch"):
            monkeypatch.setattr(fmt, name, unsafe)
    assert exporter.verify(exported / file, model).passed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("file", ["model.tflite", "model-int8.tflite", "model.onnx"])
def test_no_damage_is_more_than_a_verdict(exported, model, file, tmp_path):
    content, rng = (exported / file).read_bytes(), np.random.default_rng(0)
    verdicts = []
    for number in range(4):
        damaged = bytearray(content)
        start = rng.integers(0, len(content) - 200)
        damaged[start : start + 200] = rng.bytes(200)
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / file
        path.write_bytes(damaged if number else content[: len(content) // 2])
        verdicts.append(exporter.verify(path, model))
    assert not verdicts[0].passed
    assert sum(verdict.passed for verdict in verdicts) <= 2


def test_pipe_in_a_folder_is_refused(exported, model, tmp_path):
    shutil.copytree(exported / "saved_model", tmp_path / "saved_model")
    os.mkfifo(tmp_path / "saved_model" / "variables" / "pipe")
    with pytest.raises(exporter.InputError, match=r"regular file or a folder.*pipe"):
        exporter.verify(tmp_path / "saved_model", model)


def test_verify_names_the_formats_for_a_foreign_file(model, tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(exporter.InputError, match="tflite, onnx"):
        exporter.verify(tmp_path / "model.bin", model)


@pytest.mark.slow
def test_c_source_is_verified_from_its_folder(model, arrays, installed, tmp_path):
    installed("c")
    (artifact,) = exporter.export(
        model, tmp_path, formats=("c",), quantize=("int8",), data=exporter.load_dataset(arrays)
    )
    verdict = exporter.verify(tmp_path / "c-int8", model, data=exporter.load_dataset(arrays))
    assert verdict.passed
    assert artifact.figures["arena_bytes"] > 0
