"""A run with a report of everything: images, classes, integers, training, names that need care."""

import contextlib

import numpy as np
import pytest

import exporter

LABELS = ["<b>zero</b>", "one & only", *(f"class {number}" for number in range(2, 10))]


@pytest.fixture(scope="session")
def drawn(build, tmp_path_factory):
    """Report of that run, whose data are raw values of 0 to 255."""
    model = build("sequential_mlp")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 6, 6, 1)).astype(np.uint8)
    y = model.predict(x / np.float32(255), verbose=0).argmax(axis=1)
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    recipe = exporter.Recipe(
        output=str(folder / "run"),
        rank={"hidden_1": 3, "hidden_2": 4},
        formats=("tflite", "onnx"),
        quantize=("none", "int8"),
        io_type="int8",
        scale="unit",
        finetune=1,
        labels=str(folder / "labels.txt"),
        description="<script>alert(1)</script>",
        report=True,
    )
    with contextlib.chdir(folder):
        report = exporter.run(recipe, model=model, dataset=exporter.load_dataset({"x": x, "y": y}))
    assert report.drawing_error is None
    return report
