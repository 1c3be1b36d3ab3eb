import pytest

import exporter
from exporter.commands.artifact import ArtifactWriter
from exporter.errors import DataError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.formats.onnx import onnx
from exporter.formats.tflite import flatbuffer
from exporter.lowrank.engine import Compressed


@pytest.mark.parametrize("variant", ["int8", "mixed"])
def test_variant_that_is_calibrated_needs_data(variant, model, tmp_path):
    with pytest.raises(DataError, match="or bits of layers, on a training part"):
        exporter.export(model, tmp_path / "out", quantize=(variant,))
    recipe = exporter.Recipe(quantize=(variant,), data="none", output=str(tmp_path / "out"))
    with pytest.raises(DataError, match="'none' without one"):
        exporter.run(recipe, model=model)
    assert not (tmp_path / "out").exists()


def test_variants_of_one_network_are_made_of_one_conversion(model, tmp_path, monkeypatch):
    made = []

    def counted(name, convert):
        return lambda *args, **kwargs: made.append(name) or convert(*args, **kwargs)

    monkeypatch.setattr(flatbuffer, "_convert", counted("tflite", flatbuffer._convert))
    monkeypatch.setattr(onnx, "build", counted("onnx", onnx.build))
    recipe = exporter.Recipe(quantize=("none", "dynamic"), formats=("tflite", "onnx", "ort"))
    compressed = Compressed.of(model)
    writer = ArtifactWriter(recipe, compressed, None, exporter.ModelCard())
    variants = [(FORMATS[name], variant) for name, variant in recipe.artifacts]
    shared = [tmp_path / f"shared-{number}{fmt.suffix}" for number, (fmt, _) in enumerate(variants)]
    for path, (fmt, variant) in zip(shared, variants, strict=True):
        writer.write(fmt, variant, path, tmp_path)
    assert sorted(made) == ["onnx", "tflite"]
    for path, (fmt, variant) in zip(shared, variants, strict=True):
        own = tmp_path / f"own{fmt.suffix}"
        fmt.export(compressed.network, own, ExportOptions(variant, granularity="tensor"))
        assert own.read_bytes() == path.read_bytes()
        own.unlink()
