"""What the tests of all formats share."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import keras
import pytest

from exporter.formats.base import ExportOptions
from exporter.graph.network import Network


@pytest.fixture
def export(installed, tmp_path):
    """Writes a model in a format, by name, and returns the path; a new one every time."""
    count = itertools.count()

    def write(name, model, **options):
        fmt = installed(name)
        path = tmp_path / f"artifact{next(count)}{fmt.suffix}"
        fmt.export(Network(model), path, ExportOptions(**options))
        return path

    return write


@pytest.fixture
def masked_attention():
    """Attention of each step to those before it."""
    keras.utils.set_random_seed(0)
    given = keras.Input((12, 16), name="x")
    layer = keras.layers.MultiHeadAttention(4, 8, name="y")
    return keras.Model(given, layer(given, given, use_causal_mask=True))


class Exported(NamedTuple):
    """A model of the zoo and its artifact; neither is to be changed."""

    model: Any
    path: Path


@pytest.fixture(scope="session")
def export_zoo(installed, build, tmp_path_factory):
    """Exports a model of the zoo in a format, both by name; once, for that is what takes time."""
    made = {}

    def get(name, zoo_name):
        if (name, zoo_name) not in made:
            fmt, model = installed(name), build(zoo_name)
            path = tmp_path_factory.mktemp("exported") / f"artifact{fmt.suffix}"
            fmt.export(Network(model), path, ExportOptions())
            made[name, zoo_name] = Exported(model, path)
        return made[name, zoo_name]

    return get


class InverseErrorFunction(keras.layers.Layer):
    """TensorFlow computes it; neither LiteRT nor ONNX has the operator."""

    def call(self, inputs):
        return keras.ops.erfinv(inputs)


@pytest.fixture
def unconvertible():
    return keras.Sequential(
        [keras.Input((8,), name="x"), keras.layers.Dense(4, name="y"), InverseErrorFunction()]
    )


@pytest.fixture
def lstm():
    """Builds a model with an LSTM."""

    def build(batch=None, **options):
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input(batch_shape=(batch, 5, 3), name="sequence"),
                keras.layers.LSTM(6, name="lstm", **options),
                keras.layers.Dense(2, bias_initializer="ones", name="scores"),
            ]
        )

    return build
