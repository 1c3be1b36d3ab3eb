import zipfile

import pytest

import exporter


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


def test_export_fixes_the_batch_that_is_asked_for(model, tmp_path):
    artifacts = exporter.export(model, tmp_path, ("tflite", "onnx"), batch=3)
    for artifact in artifacts:
        assert {info.shape[0] for info in (*artifact.inputs, *artifact.outputs)} == {3}
        assert "batches of 3 alone" in artifact.notes[0]
        assert exporter.verify(artifact, model).passed


def test_export_refuses_another_batch_than_the_models_own(tmp_path):
    import keras

    model = keras.Sequential([keras.Input(batch_shape=(2, 4)), keras.layers.Dense(3)])
    with pytest.raises(exporter.RecipeError, match=r"batch must be 2.*Received: 3"):
        exporter.export(model, tmp_path, batch=3)


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
