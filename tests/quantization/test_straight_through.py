"""Networks that compute in simulated integers while they train."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration
from exporter.quantization.simulation import Simulation
from exporter.quantization.straight_through import straight_through

SCHEMES = {
    name: replace(FORMATS["tflite"].variant(name).scheme, granularity="channel")
    for name in ("int4", "dynamic")
}


def network(*hidden):
    keras.utils.set_random_seed(0)
    last = layers.Dense(24, name="y")
    return Network(keras.Sequential([keras.Input((10, 10, 16), name="x"), *hidden, last]))


def convolutional():
    return network(
        layers.Conv2D(24, 3, activation="relu", name="conv"), layers.Flatten(name="flatten")
    )


def inputs():
    return np.random.default_rng(0).normal(size=(32, 10, 10, 16)).astype("float32")


@pytest.mark.parametrize("name", SCHEMES)
def test_it_computes_what_simulated_integers_give(name):
    model, x = convolutional(), inputs()
    exact = model.model(x).numpy()
    with straight_through(model, SCHEMES[name]):
        rounded = model.model(x).numpy()
    noise = np.sum((rounded - exact) ** 2) / np.sum(exact**2)
    simulation = Simulation(model, Calibration({"x": x}, 32), SCHEMES[name])
    assert -10 * np.log10(noise) == pytest.approx(simulation.snr(model), abs=0.1)
    # Afterwards nothing is left of it.
    np.testing.assert_array_equal(model.model(x).numpy(), exact)


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_are_those_of_the_rounded_weights(name):
    model, x = convolutional(), inputs()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.model(x) ** 2)
    expected = tape.gradient(loss, model.model.trainable_variables)
    with straight_through(model, SCHEMES[name]), tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.model(x) ** 2)
    found = tape.gradient(loss, model.model.trainable_variables)
    for one, other in zip(found, expected, strict=True):
        assert np.any(one != other)
        cosine = np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
        assert cosine > (0.9 if name == "int4" else 0.99)


def test_small_kernels_and_layers_in_float_are_left():
    model = network(layers.GlobalAveragePooling2D(name="pool"))
    x = inputs()
    exact = model.model(x).numpy()
    with straight_through(model, SCHEMES["int4"]):
        np.testing.assert_array_equal(model.model(x).numpy(), exact)
