"""Models that are called in steps, against whole calls."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.graph import steps
from exporter.graph.hooks import called
from exporter.graph.signature import Signature
from exporter.graph.steps import Steps


@pytest.fixture
def text():
    """A model with a branch, whose recurrent layer has to be told what is padding."""
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    embedded = layers.Embedding(7, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.Dropout(0.5, name="dropout")(layers.Dense(4, name="dense")(embedded))
    x = layers.Add(name="sum")([x, embedded])
    return keras.Model(tokens, layers.GRU(3, name="gru")(x))


@pytest.mark.parametrize("limit", [steps.MAX_KEPT, 0])
def test_steps_continue_where_the_last_one_ended(text, monkeypatch, limit):
    monkeypatch.setattr(steps, "MAX_KEPT", limit)
    generator = np.random.default_rng(0)
    batches = [{"tokens": generator.integers(0, 3, (size, 5))} for size in (4, 4, 2)]
    run = Steps(Signature(text), batches.__getitem__, len(batches))
    traced = []

    def outputs_of(name):
        layer = text.get_layer(name)

        def observe(call):
            with called([layer, text.get_layer("embedding")]) as calls:
                call()
            traced.append(len(calls))
            return {"y": calls[id(layer)][0][1]}

        place = run.places(layer).start
        return [seen["y"].numpy() for seen in run.run(place + 1, place, observe)]

    for name in ("dense", "sum", "gru"):
        expected = keras.Model(text.inputs, text.get_layer(name).output)
        for batch, actual in zip(batches, outputs_of(name), strict=True):
            np.testing.assert_allclose(actual, expected([batch["tokens"]]), atol=1e-6)
    assert traced == ([2, 1, 1] if limit else [2, 2, 2])


def test_a_step_that_starts_where_the_last_one_did_has_all_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    difference = layers.Subtract(name="difference")
    model = keras.Model([left, right], difference([layers.ReLU()(right), left]))
    batch = {"left": np.ones((2, 4)), "right": np.full((2, 4), 3.0)}
    run, stop = Steps(Signature(model), lambda number: batch, 1), 10

    def observe(call):
        with called([difference]) as calls:
            call()
        return {"y": calls[id(difference)][0][1]}

    for _ in range(2):
        (seen,) = run.run(stop, 0, observe)
        np.testing.assert_array_equal(seen["y"], np.full((2, 4), 2.0))


def test_places_enclose_all_calls_of_a_layer():
    shared = layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, shared(layers.ReLU(name="between")(inner(inputs))))
    run = Steps(Signature(model), lambda number: {}, 1)
    places, between = run.places(shared), run.places(model.get_layer("between"))
    assert len(places) == 3
    assert len(between) == 1
    assert between.start in places
    assert not run.places(layers.Dense(2))


def test_only_sizes_that_differ_are_free():
    spec = steps.relaxed(tf.zeros((4, 5)), tf.zeros((3, 5)))
    assert spec.shape.as_list() == [None, 5]
    assert spec.dtype == tf.float32
