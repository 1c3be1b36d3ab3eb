"""Splits separable convolutions into the depthwise and the pointwise one that they consist of."""

from typing import Any

from exporter.graph.layers import classes_of, input_shape, is_channels_last, unsupported_feature
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer


def split_separable(network: Network) -> Network:
    """Copies a network with two layers in place of each separable convolution.

    The copy computes the same. Channels between the two can then be given by others, which no
    separable convolution can express.

    Returns:
        The copy, or the network itself if there is none.
    """
    import keras

    kinds = {
        keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
        keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
    }
    replacements = {
        path: _split(layer, *kinds[kind])
        for path, layer in network.layers.items()
        if is_channels_last(layer) and not unsupported_feature(layer)
        for kind in [next((k for k in classes_of(layer) if k in kinds), None)]
        if kind is not None
    }
    return network.rewrite(replacements) if replacements else network


def _split(layer: Layer, depthwise: Any, pointwise: Any) -> Replacement:
    kernel, mixing, *bias = layer.get_weights()
    shared = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    first = depthwise(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **shared,
    )
    second = pointwise(
        layer.filters,
        1,
        activation=layer.activation,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        use_bias=layer.use_bias,
        name=layer.name,
        **shared,
    )
    shape = input_shape(layer)
    first.build(shape)
    first.set_weights([kernel])
    second.build(first.compute_output_shape(shape))
    second.set_weights([mixing, *bias])
    return Replacement((first, second), {})
