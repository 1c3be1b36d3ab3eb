import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.graph.hooks import called, replaced, watched


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh", name="first"),
            layers.Dense(3, activation="relu", name="second"),
        ]
    )


def test_calls_are_noted_in_their_order(model):
    inputs, never = tf.ones((2, 4)), layers.Dense(1)
    first, second = model.layers
    with called([never, second, first, first]) as calls:
        outputs = model(inputs)
    assert list(calls) == [id(first), id(second)]
    ((given, latent),), ((taken, result),) = calls.values()
    np.testing.assert_array_equal(given, inputs)
    np.testing.assert_array_equal(taken, latent)
    np.testing.assert_array_equal(result, outputs)


def test_tensors_are_watched_before_the_activation_or_after_the_call(model):
    first, second = model.layers
    unwatched = layers.Dense(1)
    places = [(first, "activation"), (second, "output"), (unwatched, None)]
    with tf.GradientTape() as tape, watched(places, tape) as seen:
        loss = tf.reduce_sum(model(tf.ones((2, 4))))
    assert seen[id(unwatched)] == []
    (before,), (output,) = seen[id(first)], seen[id(second)]
    at_first, at_second = tape.gradient(loss, [before, output])
    np.testing.assert_array_equal(at_second, np.ones((2, 3)))
    open_units = (output.numpy() > 0) @ second.kernel.numpy().T
    np.testing.assert_allclose(at_first, open_units * (1 - np.tanh(before) ** 2), rtol=1e-5)


def test_layers_are_left_as_they_were(model):
    first, second = model.layers
    before = [dict(vars(layer)) for layer in model.layers]
    with pytest.raises(RuntimeError), replaced([(second, "activation", None)]):
        assert second.activation is None
        raise RuntimeError
    with replaced([(first, "call", lambda inputs: tf.zeros((len(inputs), 5)))]):
        np.testing.assert_array_equal(model(tf.ones((2, 4))), np.zeros((2, 3)))
    assert [dict(vars(layer)) for layer in model.layers] == before
