import keras
import pytest

from exporter.graph.fitting import scales_input


@pytest.mark.parametrize("kind", ["Rescaling", "Normalization"])
def test_a_model_that_scales_its_input_is_recognised_even_inside(kind):
    layer = {"Rescaling": keras.layers.Rescaling(1 / 255), "Normalization": None}[kind]
    layer = layer or keras.layers.Normalization(mean=0.5, variance=2.0)
    inner = keras.Sequential([keras.Input((4,)), layer])
    assert scales_input(keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)]))
    assert not scales_input(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
