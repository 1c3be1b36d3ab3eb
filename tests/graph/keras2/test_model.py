"""Models of Keras 2 against the same layers of Keras 3, or against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.loading import load_model

BATCH_NORM = {"momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True, "fused": True}
CONV = {"strides": [1, 1], "padding": "same", "data_format": "channels_last", "use_bias": True}
DEPTHWISE = {**CONV, "kernel_size": [3, 3], "groups": 1, "depth_multiplier": 2}
RECURRENT = {"units": 3, "activation": "tanh", "use_bias": True, "return_sequences": True,
             "recurrent_activation": "sigmoid", "time_major": False, "implementation": 2,
             "unroll": False, "stateful": False}  # fmt: skip

LAYERS = {
    "DepthwiseConv2D": (DEPTHWISE, layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)),
    "SeparableConv2D": (
        {**DEPTHWISE, "filters": 5, "groups": 1},
        layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2),
    ),
    "Conv2DTranspose": (
        {**CONV, "filters": 4, "kernel_size": [3, 3], "strides": [2, 2], "groups": 1,
         "output_padding": None, "dilation_rate": [1, 1]},
        layers.Conv2DTranspose(4, 3, 2, padding="same"),
    ),
    "BatchNormalization": ({**BATCH_NORM, "axis": [3]}, layers.BatchNormalization()),
    "BatchNormalizationV1": (
        {**BATCH_NORM, "axis": [3], "renorm": False, "virtual_batch_size": None},
        layers.BatchNormalization(),
    ),
    "SyncBatchNormalization": ({**BATCH_NORM, "axis": [3]}, layers.BatchNormalization()),
    "LayerNormalization": (
        {"axis": [3], "epsilon": 1e-3, "center": True, "scale": True},
        layers.LayerNormalization(),
    ),
    "LeakyReLU": ({"alpha": 0.2}, layers.LeakyReLU(0.2)),
    "ThresholdedReLU": ({"theta": 0.7}, layers.ReLU(threshold=0.7)),
    "Normalization": (
        {"axis": [-1], "mean": None, "variance": None, "invert": False},
        layers.Normalization(),
    ),
    "Activation": ({"activation": "softmax_v2"}, layers.Activation("softmax")),
    "Softmax": ({"axis": [-1]}, layers.Softmax()),
    "Dense": (
        {"units": 3, "use_bias": True, "kernel_regularizer": {"class_name": "L2",
         "config": {"l2": 0.01}}, "dtype": {"class_name": "Policy", "config": {"name": "float32"}},
         "activation": {"class_name": "LeakyReLU", "config": {"name": "leaky", "alpha": 0.3}}},
        layers.Dense(3, layers.LeakyReLU(0.3)),
    ),
}  # fmt: skip

SEQUENCES = {
    "LSTM": (RECURRENT, layers.LSTM(3, return_sequences=True)),
    "GRU": ({**RECURRENT, "reset_after": True}, layers.GRU(3, return_sequences=True)),
    "Bidirectional": (
        {"merge_mode": "concat", "layer": {"class_name": "LSTM",
         "config": {"name": "inner", **RECURRENT}}},
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
    ),
    "RNN": (
        {"return_sequences": True, "time_major": False, "cell": {"class_name": "StackedRNNCells",
         "config": {"name": "cells", "cells": [
             {"class_name": "GRUCell", "config": {"units": 3, "implementation": 2, "name": "a"}},
             {"class_name": "LSTMCell", "config": {"units": 2, "implementation": 2, "name": "b"}},
         ]}}},
        layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)], return_sequences=True),
    ),
    "TimeDistributed": (
        {"layer": {"class_name": "Sequential", "config": {"name": "inner", "layers": [
            {"class_name": "Dense", "config": {"name": "d", "units": 4, "activation": "relu",
             "batch_input_shape": [None, 3]}},
            {"class_name": "BatchNormalization", "config": {"name": "n", "axis": [1]}},
            {"class_name": "Dense", "config": {"name": "e", "units": 4}},
        ]}}},
        layers.TimeDistributed(keras.Sequential([
            keras.Input((3,)), layers.Dense(4, "relu"), layers.BatchNormalization(),
            layers.Dense(4),
        ])),
    ),
}  # fmt: skip


def randomized(model):
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.2, 1, w.shape).astype(w.dtype) for w in model.weights])
    return model


def legacy(layer):
    return [w.numpy() for w in (*layer.trainable_weights, *layer.non_trainable_weights)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", [*LAYERS, *SEQUENCES])
def test_layer_is_that_of_keras_3(stored, arrays, kind):
    config, twin = (LAYERS | SEQUENCES)[kind]
    shape = (6, 6, 3) if kind in LAYERS else (5, 3)
    twin = randomized(
        keras.Sequential([keras.Input(shape), twin.__class__.from_config(twin.get_config())])
    )
    for layer in twin.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    name = config.get("name", "only")
    only = stored.layer(kind, name, [stored.fed("x")], **config)
    path = stored.write_h5(
        stored.functional(stored.inputs(*shape), only, outputs=[["only", 0, 0]]),
        {"only": legacy(twin.layers[0])},
    )
    (x,) = arrays((2, *shape))
    np.testing.assert_allclose(stored.predict(path, x), twin(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("DepthwiseConv2D", {**DEPTHWISE, "groups": 3}, r"no option groups=3 for DepthwiseConv2D"),
        ("LSTM", {**RECURRENT, "time_major": True}, r"no option time_major=True for LSTM"),
        ("LSTM", {**RECURRENT, "recurrent_activation": "hard_sigmoid"}, "another slope"),
        ("BatchNormalization", {"axis": [1], "virtual_batch_size": 4}, "virtual_batch_size=4"),
        ("Dense", {"units": 3, "activation": "of_my_own"}, "of_my_own"),
    ],
)
def test_option_that_keras_3_lacks_is_named(stored, kind, config, told):
    only = stored.layer(kind, "only", [stored.fed("x")], **config)
    path = stored.write_h5(
        stored.functional(stored.inputs(5, 5, 3), only, outputs=[["only", 0, 0]])
    )
    with pytest.raises(ModelError, match=rf"Keras 2\.9\.0,.*layer 'only' \({kind}\): .*{told}"):
        load_model(path)


@pytest.mark.parametrize("kind", ["LocallyConnected2D", "CuDNNLSTM", "OfMyOwn", "Own>OfMyOwn"])
def test_class_that_keras_3_lacks_is_named(stored, kind):
    only = stored.layer(kind, "only", [stored.fed("x")])
    path = stored.write_h5(stored.functional(stored.inputs(5), only, outputs=[["only", 0, 0]]))
    with pytest.raises(ModelError, match=rf"Keras 2\.9\.0,.*layer 'only'.*class '{kind}'"):
        load_model(path)


class Scaled(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor


@pytest.mark.parametrize("kind", ["Scaled", "Custom>Scaled"])
def test_class_of_the_users_own_gets_its_options(stored, arrays, kind):
    only = stored.layer(kind, "only", factor=3.0, batch_input_shape=[None, 5])
    path = stored.write_h5(stored.sequential(only))
    (x,) = arrays((2, 5))
    with keras.saving.custom_object_scope({kind: Scaled}):
        np.testing.assert_allclose(stored.predict(path, x), 3 * x, rtol=1e-6)


def test_lambda_layer_is_refused(stored):
    only = stored.layer("Lambda", "only", [stored.fed("x")], function=["4wEAAAA", None, None])
    path = stored.write_h5(stored.functional(stored.inputs(5), only, outputs=[["only", 0, 0]]))
    with pytest.raises(ModelError, match=r"layer 'only' \(Lambda\).*would run code from the file"):
        load_model(path)


@pytest.mark.parametrize("form", ["input layer", "shape of the first layer", "list of layers"])
def test_sequential_models(stored, arrays, form):
    kernels = arrays((4, 5), (5,), (5, 3), (3,))
    shaped = {} if form == "input layer" else {"batch_input_shape": [None, 4]}
    chain = [stored.dense("a", 5, activation="relu", **shaped), stored.dense("b", 3)]
    config = stored.sequential(*([stored.inputs(4)] if not shaped else []), *chain)
    if form == "list of layers":
        config["config"] = config["config"]["layers"]
    path = stored.write_h5(config, {"a": kernels[:2], "b": kernels[2:]})
    (x,) = arrays((2, 4))
    expected = np.maximum(x @ kernels[0] + kernels[1], 0) @ kernels[2] + kernels[3]
    np.testing.assert_allclose(stored.predict(path, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph", ["functional", "sequential"])
def test_hard_sigmoid_has_the_slope_of_keras_2(stored, arrays, graph):
    kernel, bias = arrays((4, 5), (5,))
    last = stored.dense("a", 5, [stored.fed("x")], activation="hard_sigmoid")
    path = stored.write_h5(
        stored.sequential(stored.inputs(4), last)
        if graph == "sequential"
        else stored.functional(stored.inputs(4), last, outputs=[["a", 0, 0]]),
        {"a": [kernel, bias]},
    )
    (x,) = arrays((7, 4))
    expected = np.clip(0.2 * (x @ kernel + bias) + 0.5, 0, 1)
    np.testing.assert_allclose(stored.predict(path, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner_graph", ["functional", "sequential"])
@pytest.mark.parametrize("frozen", [False, True])
def test_nested_model_takes_its_weights_in_stored_order(stored, arrays, inner_graph, frozen):
    k1, k2, k3 = arrays((4, 4), (4, 4), (4, 2))
    b1, b2, b3, gamma, beta, mean = arrays((4,), (4,), (2,), (4,), (4,), (4,))
    variance = np.full(4, 2.0, "float32")
    chain = [
        stored.dense("a", 4, [stored.fed("in")], trainable=not frozen),
        stored.layer("BatchNormalization", "n", [stored.fed("a")], axis=[1], trainable=not frozen),
        stored.dense("b", 4, [stored.fed("n")]),
    ]
    source = stored.inputs(4, name="in")
    if inner_graph == "functional":
        inner = stored.functional(source, *chain, outputs=[["b", 0, 0]], name="inner")
    else:
        inner = stored.sequential(source, *chain, name="inner")
    inner |= {"name": "inner", "inbound_nodes": [stored.fed("x")]}
    last = stored.dense("c", 2, [[["inner", 1, 0, {}]]])
    trained, others = [k1, b1, gamma, beta, k2, b2], [mean, variance]
    if frozen:
        trained, others = [k2, b2], [k1, b1, gamma, beta, mean, variance]
    path = stored.write_h5(
        stored.functional(stored.inputs(4), inner, last, outputs=[["c", 0, 0]]),
        {"inner": trained + others, "c": [k3, b3]},
    )
    (x,) = arrays((3, 4))
    hidden = gamma * (x @ k1 + b1 - mean) / np.sqrt(variance + 1e-3) + beta
    expected = (hidden @ k2 + b2) @ k3 + b3
    np.testing.assert_allclose(stored.predict(path, x), expected, rtol=1e-4, atol=1e-4)
    assert load_model(path).model.get_layer("inner").layers[-1].name == "b"


def test_layer_that_is_called_twice_is_one_layer(stored, arrays):
    (kernel, bias, x, y) = arrays((4, 3), (3,), (2, 4), (2, 4))
    shared = stored.dense("s", 3, [stored.fed("x"), stored.fed("y")])
    difference = stored.layer("Subtract", "d", [[["s", 1, 0, {}], ["s", 0, 0, {}]]])
    path = stored.write_h5(
        stored.functional(
            stored.inputs(4), stored.inputs(4, name="y"), shared, difference,
            outputs={"out": ["d", 0, 0]},
        ),
        {"s": [kernel, bias]},
    )  # fmt: skip
    np.testing.assert_allclose(stored.predict(path, x, y), (y - x) @ kernel, rtol=1e-5, atol=1e-5)
    assert [info.name for info in load_model(path).outputs] == ["out"]


def test_names_with_slashes_and_operations_give_outputs_their_names(stored, arrays):
    kernel, bias = arrays((4, 3), (3,))
    path = stored.write_h5(
        stored.functional(
            stored.inputs(4),
            stored.dense("conv1/bn", 3, [stored.fed("x")]),
            stored.operation("nn.softmax", "tf.nn.softmax", ["conv1/bn", 0, 0, {"axis": -1}]),
            outputs=[["conv1/bn", 0, 0], ["tf.nn.softmax", 0, 0]],
        ),
        {"conv1/bn": [kernel, bias]},
    )
    network = load_model(path)
    assert [info.name for info in network.outputs] == ["conv1_bn", "tf_nn_softmax"]
    np.testing.assert_array_equal(network.model.get_layer("conv1_bn").kernel, kernel)


def test_tensors_may_be_arguments(stored, arrays):
    twin = layers.MultiHeadAttention(2, 3)
    x, y = arrays((2, 5, 4), (2, 6, 4))
    twin(x, y)
    config = {"num_heads": 2, "key_dim": 3, "value_dim": 3, "dropout": 0.0, "use_bias": True,
              "output_shape": None, "attention_axes": [1], "query_shape": [None, 5, 4],
              "key_shape": [None, 6, 4], "value_shape": [None, 6, 4]}  # fmt: skip
    call = stored.fed("x", value=["y", 0, 0], attention_mask=None, training=False)
    path = stored.write_h5(
        stored.functional(
            stored.inputs(5, 4), stored.inputs(6, 4, name="y"),
            stored.layer("MultiHeadAttention", "a", [call], **config), outputs=[["a", 0, 0]],
        ),
        {"a": legacy(twin)},
    )  # fmt: skip
    np.testing.assert_allclose(stored.predict(path, x, y), twin(x, y), rtol=1e-5, atol=1e-6)


def test_initial_states_are_listed_after_the_input(stored, arrays):
    twin = layers.LSTM(3, return_sequences=True)
    x, h, c = arrays((2, 5, 4), (2, 3), (2, 3))
    expected = twin(x, initial_state=[h, c])
    sources = [stored.inputs(*a.shape[1:], name=n) for n, a in {"x": x, "h": h, "c": c}.items()]
    lstm = stored.layer("LSTM", "l", [stored.fed("x", "h", "c")], **RECURRENT)
    path = stored.write_h5(
        stored.functional(*sources, lstm, outputs=[["l", 0, 0]]), {"l": legacy(twin)}
    )
    np.testing.assert_allclose(stored.predict(path, x, h, c), expected, rtol=1e-5, atol=1e-6)


def test_model_with_operations_is_copied_and_saved(stored, arrays, tmp_path):
    kernel, bias, x = arrays((4, 3), (3,), (2, 4))
    path = stored.write_h5(
        stored.functional(
            stored.inputs(4),
            stored.operation("math.truediv", "tf.math.truediv", ["x", 0, 0, {"y": 127.5}]),
            stored.operation(
                "nn.bias_add", "tf.add", ["tf.math.truediv", 0, 0, {"bias": [1.0] * 4}]
            ),
            stored.dense("a", 3, [stored.fed("tf.add")]),
            outputs=[["a", 0, 0]],
        ),
        {"a": [kernel, bias]},
    )
    copy = load_model(path).copy()
    copy.model.save(tmp_path / "copy.keras")
    expected = (x / 127.5 + 1) @ kernel + bias
    for network in (copy, load_model(str(tmp_path / "copy.keras"))):
        found = network.runner()({"x": x})["a"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
