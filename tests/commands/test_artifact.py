import pytest

import exporter
from exporter.errors import DataError


def test_variant_that_is_calibrated_needs_data(model, tmp_path):
    with pytest.raises(DataError, match="calibrates ranges of activations on a training part"):
        exporter.export(model, tmp_path / "out", quantize=("int8",))
    recipe = exporter.Recipe(quantize=("int8",), data="none", output=str(tmp_path / "out"))
    with pytest.raises(DataError, match="'none' without one"):
        exporter.run(recipe, model=model)
    assert not (tmp_path / "out").exists()
