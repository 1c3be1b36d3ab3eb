import keras
import pytest

from exporter.graph.network import Network


@pytest.mark.parametrize("kind", ["Rescaling", "Normalization"])
def test_a_model_that_scales_its_input_is_recognised_even_inside(kind):
    layer = {"Rescaling": keras.layers.Rescaling(1 / 255), "Normalization": None}[kind]
    layer = layer or keras.layers.Normalization(mean=0.5, variance=2.0)
    inner = keras.Sequential([keras.Input((4,)), layer])
    assert Network(keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])).scales_input
    assert not Network(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])).scales_input
