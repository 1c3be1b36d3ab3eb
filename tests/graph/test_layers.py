"""The table of layer kinds, proven on real layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.errors import ModelError
from exporter.graph.layers import (
    ACTIVATIONS,
    KINDS,
    LayerKind,
    activation_of,
    finalize,
    kind_of,
    refuse_channels_first,
)
from exporter.lowrank.factorizers import FACTORIZERS

OPTIONS = {
    "Dense": {"units": 6},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (None, 6), "bias_axes": "d"},
    "Activation": {"activation": "relu"},
    "Dropout": {"rate": 0.5},
    **{f"AveragePooling{n}D": {"pool_size": 2} for n in (1, 2, 3)},
    "GaussianDropout": {"rate": 0.5},
    "GaussianNoise": {"stddev": 0.5},
    "Rescaling": {"scale": 2.0},
    "GroupNormalization": {"groups": 2},
    **{f"SpatialDropout{n}D": {"rate": 0.5} for n in (1, 2, 3)},
    **{f"{name}{n}D": {"filters": 6, "kernel_size": 2} for name in ("Conv",) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": {"filters": 6, "kernel_size": 2} for n in (1, 2, 3)},
    **{f"SeparableConv{n}D": {"filters": 6, "kernel_size": 2} for n in (1, 2)},
    **{f"DepthwiseConv{n}D": {"kernel_size": 2, "depth_multiplier": 2} for n in (1, 2)},
}
CHANNELS = 4

LINEAR = [name for name, kind in KINDS.items() if kind.output_axes]
PASSING = [name for name, kind in KINDS.items() if kind.passes]


def dimensions(name):
    return next((n for n in (1, 2, 3) if f"{n}D" in name), 2 if name == "Flatten" else 1)


def draw(name, low=-1.0):
    shape = (3, *dimensions(name) * [4], CHANNELS)
    return np.random.default_rng(0).uniform(low, 1.0, shape).astype("float32")


def made(name, **options):
    """A layer of a kind with random weights, and an input of it."""
    layer = getattr(layers, name)(**OPTIONS.get(name, {}), **options)
    inputs = draw(name)
    layer.build(inputs.shape)
    generator = np.random.default_rng(1)
    layer.set_weights([generator.normal(size=weight.shape) for weight in layer.weights])
    return layer, inputs


def call(layer, inputs):
    return np.asarray(layer(inputs))


def kernels(layer):
    return [weight for weight in layer.weights if weight.name != "bias"]


@pytest.mark.parametrize("name", KINDS)
def test_every_name_is_a_class_of_keras_and_what_its_subclasses_add_is_of_no_kind(name):
    kind = getattr(layers, name)
    assert issubclass(kind, layers.Layer)
    if name in OPTIONS or KINDS[name].passes:
        options = OPTIONS.get(name, {})
        assert kind_of(kind(**options)) is KINDS[name]
        assert kind_of(type(name, (kind,), {})(**options)) is KINDS[name]
        other = type(name, (kind,), {"call": kind.call})(**options)
        assert kind_of(other) == LayerKind()
        assert kind_of(other, inherited=True) is KINDS[name]


@pytest.mark.parametrize("name", LINEAR)
def test_outputs_are_scaled_along_the_axes_of_outputs_of_the_last_kernel(name):
    layer, inputs = made(name)
    assert kind_of(layer) is KINDS[name]
    layer.weights[-1].assign(np.zeros(layer.weights[-1].shape))  # The bias.
    expected, kernel = call(layer, inputs), kernels(layer)[-1]
    axes = [axis % len(kernel.shape) for axis in KINDS[name].output_axes]
    sizes = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    scales = np.random.default_rng(2).uniform(0.5, 2.0, expected.shape[-1])
    kernel.assign(kernel.numpy() * scales.reshape(sizes))
    np.testing.assert_allclose(call(layer, inputs), expected * scales, rtol=1e-4, atol=1e-5)


APART = [name for name, kind in KINDS.items() if kind.channels in ("apart", "scaled")]


@pytest.mark.parametrize("name", APART)
def test_kinds_that_keep_channels_apart_compute_each_from_its_own_input_alone(name):
    layer, inputs = made(name)
    expected = call(layer, inputs)
    moved = inputs.copy()
    moved[..., 1] += 1.0
    same = [channel for channel in range(CHANNELS) if channel != 1]
    outputs = call(layer, moved)
    np.testing.assert_allclose(outputs[..., same], expected[..., same], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(outputs[..., 1], expected[..., 1])


@pytest.mark.parametrize("name", LINEAR)
def test_linear_kinds_are_linear_and_take_a_bias_for_each_channel(name):
    layer, inputs = made(name)
    bias = layer.weights[-1].numpy()
    assert layer.weights[-1].name == "bias"
    product = call(layer, inputs) - bias
    np.testing.assert_allclose(call(layer, -3 * inputs) - bias, -3 * product, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LINEAR if KINDS[name].holds_factor])
def test_holders_of_factors_have_one_kernel_whose_last_axis_are_the_outputs(name):
    layer, _ = made(name)
    assert [weight.path for weight in kernels(layer)] == [layer.kernel.path]
    assert KINDS[name].output_axes == (-1,)


@pytest.mark.parametrize("name", [name for name in LINEAR if KINDS[name].is_product])
def test_rows_of_the_kernel_of_a_product_belong_to_channels_of_the_input(name):
    layer, inputs = made(name)
    scales = np.random.default_rng(2).uniform(0.5, 2.0, CHANNELS)
    expected = call(layer, inputs * scales.astype("float32"))
    layer.kernel.assign(layer.kernel.numpy() * scales[:, None])
    np.testing.assert_allclose(call(layer, inputs), expected, rtol=1e-4, atol=1e-5)
    assert layer.kernel.shape[-2] == CHANNELS


@pytest.mark.parametrize("name", PASSING)
def test_passing_kinds_keep_channels_apart_and_their_largest_values(name):
    layer, inputs = made(name)
    assert KINDS[name].passes(layer)
    scales = np.array([0.5, 1.0, 2.0, 3.0], np.float32)
    expected = call(layer, inputs)
    tiled = np.resize(scales, expected.shape[-1])
    np.testing.assert_allclose(call(layer, inputs * scales), expected * tiled, rtol=1e-5)
    largest = [values.reshape(-1, CHANNELS).max(axis=0) for values in (inputs, call(layer, inputs))]
    np.testing.assert_array_equal(*largest)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(max_value=6),
        layers.ReLU(threshold=0.5),
        layers.Activation("tanh"),
        layers.Activation("relu6"),
    ],
)
def test_options_may_keep_a_layer_from_passing(layer):
    assert not kind_of(layer).passes(layer)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_homogeneous_or_are_not(name):
    function = getattr(keras.activations, name)
    values = np.linspace(-8, 8, 41, dtype="float32")
    results = [np.asarray(function(values * scale)) / scale for scale in (1, 3)]
    assert np.allclose(*results, atol=1e-6) == ACTIVATIONS[name].homogeneous
    assert activation_of(layers.Dense(3, activation=name)) is ACTIVATIONS[name]


@pytest.mark.parametrize("name", [n for n, kind in ACTIVATIONS.items() if kind.probabilities])
def test_probabilities_lie_between_zero_and_one(name):
    values = np.asarray(getattr(keras.activations, name)(draw("Dense")))
    assert values.min() > 0
    assert values.max() < 1
    totals = values.sum(axis=-1)
    assert np.allclose(totals, 1) == (ACTIVATIONS[name].probabilities == "categorical")


def test_softmax_is_an_activation_and_unknown_ones_are_of_no_kind():
    assert activation_of(layers.Softmax()) is ACTIVATIONS["softmax"]
    assert activation_of(layers.Flatten()) is ACTIVATIONS["linear"]
    for activation in ("gelu", lambda values: values, layers.LeakyReLU()):
        kind = activation_of(layers.Dense(3, activation=activation))
        assert not kind.homogeneous
        assert not kind.fused


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.scales_input])
def test_layers_that_scale_their_input_do_so(name):
    options = {"mean": 1.0, "variance": 4.0} if name == "Normalization" else OPTIONS[name]
    layer, inputs = getattr(layers, name)(**options), draw(name)
    inside = inputs[..., 0]
    ratio = np.ptp(call(layer, inside)) / np.ptp(inside)
    assert ratio == pytest.approx(0.5 if name == "Normalization" else 2.0)


def test_what_a_layer_derives_from_its_weights_is_derived_anew():
    names = [name for name, kind in KINDS.items() if kind.finalized]
    assert names == [n for n in KINDS if hasattr(getattr(layers, n), "finalize_state")]
    for name in names:
        layer, other = getattr(layers, name)(), getattr(layers, name)()
        layer.adapt(draw(name))
        other.build(draw(name).shape)
        other.set_weights(layer.get_weights())
        finalize(other)
        np.testing.assert_array_equal(call(other, draw(name)), call(layer, draw(name)))


def test_what_a_factorizer_takes_needs_no_reason_to_be_kept():
    factorized = {factorizer.kind for factorizer in FACTORIZERS}
    assert not factorized & {name for name, kind in KINDS.items() if kind.kept}
    assert factorized >= {name for name in LINEAR if not KINDS[name].kept}


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D"])
def test_layers_that_tensorflow_cannot_compute_on_a_cpu_are_refused(kind):
    filters = {} if kind == "DepthwiseConv2D" else {"filters": 2}
    options = {"kernel_size": 1, "data_format": "channels_first", **filters}
    layer = getattr(layers, kind)(**options, dtype="float64")
    inputs = np.ones((1, 3, *[4] * (1 if "1D" in kind else 2)))
    try:
        layer(inputs)
    except (tf.errors.OpError, ValueError):
        with pytest.raises(
            ModelError, match=r"needs a GPU.*Received: block/first\..*channels_last"
        ):
            refuse_channels_first({"block/first": layer})
    else:
        refuse_channels_first({"block/first": layer})
