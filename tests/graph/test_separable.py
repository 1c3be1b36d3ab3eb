import keras
import numpy as np
import pytest
from keras import layers

from exporter.graph.channels import ChannelGraph
from exporter.graph.network import Network
from exporter.graph.separable import split_separable

KINDS = {
    "image": ((9, 9, 3), layers.SeparableConv2D, {"strides": 2, "padding": "same"}),
    "multiplied": ((9, 9, 3), layers.SeparableConv2D, {"depth_multiplier": 2, "use_bias": False}),
    "dilated": ((9, 9, 3), layers.SeparableConv2D, {"dilation_rate": 2, "activation": "tanh"}),
    "sequence": ((9, 3), layers.SeparableConv1D, {"padding": "same", "activation": "relu"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_layers_compute_what_a_separable_convolution_does(kind, randomize):
    shape, make, options = KINDS[kind]
    given = keras.Input(shape)
    x = make(6, 3, name="separable", **options)(given)
    model = keras.Model(given, layers.Dense(2)(layers.Flatten()(x)))
    randomize(model, 0)
    samples = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
    network = Network(model)
    split = split_separable(network)
    np.testing.assert_allclose(split.model(samples), model(samples), rtol=1e-4, atol=1e-5)
    assert (split.params, split.macs) == (network.params, network.macs)
    names = [layer.name for layer in split.layers.values() if layer.weights]
    assert names[:2] == ["separable_depthwise", "separable"]
    assert [group.producers for group in ChannelGraph(split).groups] == [("separable",)]


def test_a_network_without_any_is_not_copied():
    network = Network(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    assert split_separable(network) is network
