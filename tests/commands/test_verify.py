import pytest

import exporter


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
