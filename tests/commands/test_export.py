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
