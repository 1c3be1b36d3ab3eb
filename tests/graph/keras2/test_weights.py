"""Where Keras 2 stored weights, and what is said of those that do not fit."""

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.loading import load_model

LSTM = {"units": 3, "activation": "tanh", "recurrent_activation": "sigmoid", "time_major": False}


@pytest.fixture
def three(stored):
    """Three dense layers in a row, between them one without weights."""
    return stored.functional(
        stored.inputs(4),
        stored.dense("a", 4, [stored.fed("x")]),
        stored.dense("b", 4, [stored.fed("a")]),
        stored.layer("Dropout", "drop", [stored.fed("b")], rate=0.5, noise_shape=None, seed=None),
        stored.dense("c", 2, [stored.fed("drop")]),
        outputs=[["c", 0, 0]],
    )


@pytest.mark.parametrize(
    "groups",
    [
        ["layers/dense", "layers/dense_1", "layers/dense_2"],
        # TensorFlow 2.12 counted each layer twice.
        [f"_layer_checkpoint_dependencies/{name}" for name in ("dense", "dense_2", "dense_10")],
    ],
)
def test_archive_numbers_layers_of_a_class(stored, three, arrays, groups):
    k1, b1, k2, b2, k3, b3 = arrays((4, 4), (4,), (4, 4), (4,), (4, 2), (2,))
    weights = dict(zip(groups, [[k1, b1], [k2, b2], [k3, b3]], strict=True))
    path = stored.write_keras(three, {**weights, "layers/dropout": [], "optimizer": [k1]})
    (x,) = arrays((2, 4))
    expected = ((x @ k1 + b1) @ k2 + b2) @ k3 + b3
    np.testing.assert_allclose(stored.predict(path, x), expected, rtol=1e-4, atol=1e-4)


def test_archive_holds_parts_of_layers_by_attribute(stored, arrays):
    two_ways = layers.Bidirectional(layers.LSTM(3, return_sequences=True))
    attention, normalization = layers.MultiHeadAttention(2, 3), layers.Normalization()
    each = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(4)])
    (x,) = arrays((2, 5, 4))
    normalization.adapt(x)
    hidden = two_ways(attention(normalization(x), normalization(x)))
    expected = layers.TimeDistributed(each)(hidden)

    inner = stored.sequential(
        stored.inputs(6, name="in"), stored.dense("d", 4), stored.dense("e", 4), name="inner"
    )
    config = stored.functional(
        stored.inputs(5, 4),
        stored.layer("Normalization", "n", [stored.fed("x")], axis=[-1], mean=None, variance=None),
        stored.layer(
            "MultiHeadAttention", "m", [stored.fed("n", value=["n", 0, 0])], num_heads=2, key_dim=3
        ),
        stored.layer(
            "Bidirectional", "b", [stored.fed("m")], merge_mode="concat",
            layer={"class_name": "LSTM",
                   "config": {"name": "l", "return_sequences": True, **LSTM}},
        ),
        stored.layer("TimeDistributed", "t", [stored.fed("b")], layer=inner),
        outputs=[["t", 0, 0]],
    )  # fmt: skip
    mha = {
        f"layers/multi_head_attention/_{n}_dense": getattr(attention, f"{n}_dense").get_weights()
        for n in ("query", "key", "value", "output")
    }
    rnn = {
        f"layers/bidirectional/{n}/cell": getattr(two_ways, n).get_weights()
        for n in ("forward_layer", "backward_layer")
    }
    within = "layers/time_distributed/layer/layers"
    path = stored.write_keras(
        config,
        {
            "layers/normalization": normalization.get_weights(),
            **mha,
            **rnn,
            "layers/bidirectional/layer/cell": [],
            f"{within}/dense": each.layers[0].get_weights(),
            f"{within}/dense_1": each.layers[1].get_weights(),
        },
    )
    np.testing.assert_allclose(stored.predict(path, x), expected, rtol=1e-4, atol=1e-5)


def test_states_of_random_layers_are_passed_over(stored, arrays):
    (x,) = arrays((2, 4, 4, 3))
    flip = stored.layer(
        "RandomFlip", "f", [stored.fed("x")], mode="horizontal", seed=None, rng_type=None
    )
    path = stored.write_h5(
        stored.functional(stored.inputs(4, 4, 3), flip, outputs=[["f", 0, 0]]),
        {"f": {"f/StateVar:0": np.zeros(3, "int64")}},
    )
    np.testing.assert_array_equal(stored.predict(path, x), x)


@pytest.mark.parametrize("weights", [{}, {"a": [np.ones((4, 4), "float32")]}])
def test_weights_that_do_not_fit_are_an_error(stored, three, weights):
    path = stored.write_h5(three, weights)
    with pytest.raises(
        ModelError, match=r"Keras 2\.9\.0.*layer 'a' needs weights .*\(4, 4\), \(4,\)"
    ):
        load_model(path)


def test_weights_that_an_archive_lacks_are_an_error(stored, three, arrays):
    path = stored.write_keras(three, {})
    with pytest.raises(ModelError, match=r"Keras 2\.15\.0.*lacks the weights a/kernel, a/bias"):
        load_model(path)
    path = stored.write_keras(three, {"layers/dense": arrays((4, 4), (4,))})
    with pytest.raises(ModelError, match=r"weights of 1 layers for \['a', 'b', 'c'\]"):
        load_model(path)


@pytest.mark.parametrize("name", ["model.weights.h5", "old.h5"])
def test_file_of_weights_alone_is_told_with_the_way_out(tmp_path, name):
    with h5py.File(tmp_path / name, "w") as file:
        file.create_group("layers")
    with pytest.raises(ModelError, match=r"weights alone, and no model.*load_weights.*model\.save"):
        load_model(str(tmp_path / name))
