"""Scales of channels that move from one layer to the one before."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from exporter.graph.network import Network
from exporter.quantization.equalization import free_scales, scale, sources


def network(*between, activation="relu"):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, activation=activation, name="before"),
            *between,
            layers.Conv2D(4, 1, name="after"),
        ]
    )


@pytest.mark.parametrize(
    "between",
    [
        [],
        [layers.MaxPooling2D(), layers.Dropout(0.1)],
        [layers.ZeroPadding2D(), layers.LeakyReLU(), layers.ReLU(), layers.Activation("relu")],
    ],
)
def test_layers_whose_channels_can_be_scaled_are_found(between):
    model = network(*between)
    assert sources(Network(model)) == {id(model.get_layer("after")): model.get_layer("before")}


@pytest.mark.parametrize("activation", ["linear", "leaky_relu"])
def test_activations_that_are_homogeneous(activation):
    assert sources(Network(network(activation=activation)))


@pytest.mark.parametrize(
    ("between", "activation"),
    [
        ([], "relu6"),
        ([], "gelu"),
        ([layers.ReLU(max_value=6)], "linear"),
        ([layers.Activation("tanh")], "linear"),
        ([layers.AveragePooling2D(2)], "relu"),
        ([layers.BatchNormalization()], "relu"),
        ([layers.Permute((1, 3, 2))], "relu"),
    ],
)
def test_others_are_not(between, activation):
    assert sources(Network(network(*between, activation=activation))) == {}


def test_what_somebody_else_sees_is_not():
    image = keras.Input((8,))
    hidden = layers.Dense(6, activation="relu")(image)
    after = layers.Dense(6)
    assert sources(Network(keras.Model(image, layers.Add()([hidden, after(hidden)])))) == {}
    assert sources(Network(keras.Model(image, [hidden, layers.Dense(6)(hidden)]))) == {}
    shared = layers.Dense(8, activation="relu")
    assert sources(Network(keras.Model(image, shared(shared(image))))) == {}


@settings(max_examples=20)
@given(seed=st.integers(0, 99), copies=st.integers(1, 3), dead=st.booleans())
def test_scales_lower_rows_and_cost_the_source_nothing(seed, copies, dead):
    rng = np.random.default_rng(seed)
    source = layers.Dense(6, activation="relu")
    source.build((None, 4))
    source.set_weights([rng.standard_normal((4, 6)), rng.standard_normal(6)])
    inputs = rng.random((20, copies * 6)) * np.tile(rng.uniform(0.1, 1, 6), copies)
    first = rng.standard_normal((copies * 6, 3)) * rng.exponential(1, (copies * 6, 1))
    if dead:
        inputs.reshape(-1, 6)[:, 2] = 0.0
    kernel, scales = source.kernel.numpy(), np.ones(6)
    for scales in free_scales(source, np.abs(inputs).max(axis=0), first):
        assert (scales >= 1).all()
        assert np.abs(kernel * scales).max() <= np.abs(kernel).max() * (1 + 1e-6)
        assert (inputs * np.tile(scales, copies)).max() <= inputs.max() * (1 + 1e-12)
    before = source(np.eye(4)).numpy()
    scale(source, scales)
    np.testing.assert_allclose(source(np.eye(4)).numpy(), before * scales, rtol=1e-5)


def test_rows_of_zeros_need_no_scales():
    source = layers.Dense(6)
    source.build((None, 4))
    assert list(free_scales(source, np.ones(6), np.zeros((6, 3)))) == []
