import contextlib

import numpy as np
import pytest

import exporter


@pytest.fixture(scope="session")
def scored():
    """Data that a small classifier can be measured on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8)).astype(np.float32)
    return {"x": x, "y": np.arange(80) % 6}


def _carry_out(model, data, folder, **options):
    # Untrained models serve here.
    recipe = exporter.Recipe(output=str(folder), allow_poor_baseline=True, **options)
    # Checkpoints go below the current folder, where another process may train the same.
    with contextlib.chdir(folder.parent):
        return exporter.run(recipe, model=model, dataset=exporter.load_dataset(data))


@pytest.fixture(scope="session")
def accepted(build, scored, tmp_path_factory):
    """Report of a run in which all is well."""
    folder = tmp_path_factory.mktemp("accepted")
    return _carry_out(build("tiny"), scored, folder, rank=2, formats=("all",))


@pytest.fixture(scope="session")
def quantized(build, scored, tmp_path_factory):
    """Report of a run with variants, of which one computes in integers, and with a target."""
    folder = tmp_path_factory.mktemp("quantized")
    options = {"quantize": ("none", "dynamic", "int8"), "io_type": "int8", "formats": ("tflite",)}
    return _carry_out(build("tiny"), scored, folder, rank=2, target="here", **options)


@pytest.fixture(scope="session")
def rejected(scored, tmp_path_factory):
    """Report of a run whose artifact misses an unpassable tolerance."""
    import keras

    # No two runtimes approximate tanh alike; products of a few numbers may agree to the last bit.
    hidden = keras.layers.Dense(64, activation="tanh", name="hidden")
    model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(6, name="scores")])
    folder = tmp_path_factory.mktemp("rejected")
    return _carry_out(model, scored, folder, rank=2, atol=0.0, formats=("onnx",))


@pytest.fixture(scope="session")
def finetuned(build, scored, tmp_path_factory):
    """Report of a run with both kinds of fine-tuning."""
    folder = tmp_path_factory.mktemp("finetuned")
    options = {"rank": 2, "finetune": 2, "train": "projected+factored", "formats": ("onnx",)}
    return _carry_out(build("tiny"), scored, folder, **options)


@pytest.fixture(scope="session")
def adapted(build, scored, tmp_path_factory):
    """Report of a run whose ranks were chosen anew."""
    folder = tmp_path_factory.mktemp("adapted")
    options = {"rank": 2, "finetune": 1, "train": "adaptive", "formats": ("onnx",)}
    return _carry_out(build("tiny"), scored, folder, **options)


@pytest.fixture(scope="session")
def unconverted(tmp_path_factory):
    """Report of a run whose converter gives up, without data, and where no layer is factorized."""
    import keras

    inputs = keras.Input((5,), name="x")
    hidden = keras.ops.erf(inputs)
    model = keras.Model(inputs, keras.layers.Dense(6, name="out")(hidden), name="unconverted")
    folder = tmp_path_factory.mktemp("unconverted")
    recipe = exporter.Recipe(output=str(folder), rank={"out": 5}, data="none")
    return exporter.run(recipe, model=model)
