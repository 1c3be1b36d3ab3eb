import keras
import numpy as np
import pytest

from exporter.data import load_dataset
from exporter.errors import DataError
from exporter.graph.fitting import fit_both, fitted
from exporter.graph.network import Network
from exporter.options.groups import Source


@pytest.mark.parametrize("kind", ["Rescaling", "Normalization"])
def test_a_model_that_scales_its_input_is_recognised_even_inside(kind):
    layer = {"Rescaling": keras.layers.Rescaling(1 / 255), "Normalization": None}[kind]
    layer = layer or keras.layers.Normalization(mean=0.5, variance=2.0)
    inner = keras.Sequential([keras.Input((4,)), layer])
    assert Network(keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])).scales_input
    assert not Network(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])).scales_input


@pytest.mark.parametrize("wrong", [-1, 50])
def test_indices_without_a_row_are_refused_before_any_work(wrong):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    table = keras.layers.Embedding(50, 4, name="table")
    model = keras.Model(tokens, keras.layers.Flatten()(table(tokens)))
    indices = np.arange(240).reshape(40, 6) % 50
    fitted(load_dataset({"x": indices}), Network(model))
    indices[7, 3] = wrong
    with pytest.raises(
        DataError, match=rf"'tokens' must hold indices of 0 to 49.*'table'.*{wrong}"
    ):
        fitted(load_dataset({"x": indices}), Network(model))


def test_what_load_dataset_takes_is_loaded():
    network = Network(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    assert fitted({"x": np.ones((20, 4))}, network).name == "arrays"


def test_samples_longer_than_a_model_with_free_lengths_can_take_are_refused_before_any_work():
    class Positions(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(8, shape[-1]), name="table")

        def call(self, inputs):
            return inputs + self.table[: keras.ops.shape(inputs)[1]]

    inputs = keras.Input((None, 4), name="sequence")
    network = Network(keras.Model(inputs, Positions(name="places")(inputs)))
    fit_both(network, {"x": np.ones((20, 8, 4), "float32")}, Source())
    with pytest.raises(DataError, match=r"cannot compute a sample.*\(9, 4\)"):
        fit_both(network, {"x": np.ones((20, 9, 4), "float32")}, Source())
