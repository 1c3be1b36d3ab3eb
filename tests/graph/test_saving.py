import keras
import numpy as np
import pytest
from keras import layers

from exporter.graph.saving import save_model, weights_file


class Plain(layers.Layer):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)


class Sized(Plain):
    def get_config(self):
        return {**super().get_config(), "units": self.dense.units}


@pytest.mark.parametrize(
    ("layer", "whole"),
    [
        (layers.Dense(3, activation="relu"), True),
        (layers.TimeDistributed(keras.Sequential([layers.Dense(2), layers.Dense(3)])), True),
        (Sized(5), True),
        (layers.Dense(3, activation=lambda x: x * 2), False),
        (layers.Lambda(lambda x: x * 2), False),
    ],
    ids=["keras", "nested", "custom", "activation", "lambda"],
)
def test_models_that_keras_rebuilds_are_written_whole(layer, whole, tmp_path):
    model = keras.Sequential([keras.Input((4, 2)), layers.Dense(4), layer])
    path = tmp_path / "model.keras"
    assert save_model(model, path) is whole
    assert path.exists() is whole
    assert weights_file(path).exists() is not whole
    if whole:
        classes = {"Sized": Sized}
        loaded = keras.models.load_model(path, custom_objects=classes, compile=False)
        batch = np.ones((2, 4, 2), "float32")
        np.testing.assert_array_equal(loaded(batch), model(batch))
