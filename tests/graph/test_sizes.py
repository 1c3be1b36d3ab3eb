"""Free axes of inputs: counted by the data, or fixed."""

import keras
import numpy as np
import pytest
from keras import layers

import exporter
from exporter.errors import RecipeError
from exporter.graph.fitting import fit_both
from exporter.graph.network import Network
from exporter.graph.sizes import resized
from exporter.lowrank.engine import Engine
from exporter.options.groups import Source


@pytest.fixture
def network():
    """Two convolutions with strides, for images of any size."""
    inputs = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    tower = keras.Sequential(
        [keras.Input((None, None, 8)), layers.Conv2D(6, 3, strides=2, padding="same")]
    )
    return Network(keras.Model(inputs, layers.GlobalAveragePooling2D()(tower(x))))


def macs_of_kernels(network):
    return [c.macs() for c in Engine(network).candidates if c.kernel]


EXPECTED = [48 * 48 * 27 * 8, 24 * 24 * 72 * 6]


def test_costs_are_those_of_samples_of_the_data(network):
    data = exporter.load_dataset({"image": np.zeros((20, 96, 96, 3), "float32")})
    sized, _ = fit_both(network, data, Source())
    assert macs_of_kernels(sized) == EXPECTED
    assert sized.macs == sum(EXPECTED)
    assert sized.inputs[0].shape == (None, None, None, 3)
    assert sized.copy().macs == sized.macs


@pytest.mark.one_in(2)
@pytest.mark.parametrize("size", [(96, 96), (96, 96, 3), {"image": (96, 96)}])
def test_free_axes_are_fixed(network, size):
    fixed = resized(network, size)
    assert fixed.inputs[0].shape == (None, 96, 96, 3)
    assert macs_of_kernels(fixed) == EXPECTED
    image = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype("float32")
    np.testing.assert_array_equal(
        fixed.model.predict(image, verbose=0), network.model.predict(image, verbose=0)
    )


@pytest.mark.parametrize("size", [(96,), (96, 96, 4), {"image": (1, 2, 3, 4)}])
def test_other_axes_are_an_error_that_shows_the_shape(network, size):
    with pytest.raises(RecipeError, match=r"2 free axes of input 'image'.*\(None, None, 3\)"):
        resized(network, size)


def test_an_input_without_free_axes_is_an_error(network):
    with pytest.raises(RecipeError, match=r"free axes, \['image'\].*\['other'\]"):
        resized(network, {"other": (3,)})


@pytest.mark.parametrize("size", [(28, 28), {"image": (28, 28)}])
def test_a_model_without_free_axes_needs_no_size(size):
    model = keras.Sequential([keras.Input((28, 28, 1), name="image"), layers.Flatten()])
    with pytest.raises(RecipeError, match="Leave size out"):
        resized(Network(model), size)


def test_several_inputs_are_named():
    inputs = [keras.Input((None, 4), name=name) for name in ("left", "right")]
    model = keras.Model(inputs, layers.GlobalMaxPooling1D()(layers.Add()(inputs)))
    with pytest.raises(RecipeError, match="must name its input"):
        resized(Network(model), (8,))
    fixed = resized(Network(model), {"left": (8,), "right": (8,)})
    assert [info.shape for info in fixed.inputs] == [(None, 8, 4)] * 2


def test_calls_of_a_shared_layer_and_of_every_step_count():
    tower = keras.Sequential([keras.Input((7, 20)), layers.TimeDistributed(layers.Dense(10))])
    left, right = (keras.Input((7, 20), name=name) for name in ("left", "right"))
    network = Network(keras.Model([left, right], layers.Subtract()([tower(left), tower(right)])))
    assert macs_of_kernels(network) == [2 * 7 * 20 * 10]
    assert network.macs == 2 * 7 * 20 * 10
