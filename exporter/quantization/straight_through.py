"""Has a network compute in simulated integers while it trains.

Weights and inputs of linear layers are rounded as in inference, and gradients pass as if they were
not: the straight-through estimator (Bengio, Léonard and Courville, 2013).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from exporter.graph.hooks import replaced
from exporter.graph.layers import is_matrix, kernel_replaced, kind_of
from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor
from exporter.quantization.scheme import IntegerScheme, levels
from exporter.quantization.simulation import (
    is_rounded,
    kernel_format,
    linear_layers,
    round_inputs,
)


def straight_through(network: Network, scheme: IntegerScheme) -> AbstractContextManager[None]:
    """Rounds the kernels and inputs of linear layers while the block traces or calls the network.

    Kernels have symmetric integers with a scale for each channel, which normalisations behind them
    do not change. Ranges of activations are those of the batch where the scheme has static ones.
    """
    return replaced(
        [
            (layer, "call", partial(_rounded_call, layer, layer.call, scheme))
            for layer in linear_layers(network)
            if is_matrix(layer) and is_rounded(layer, scheme)
        ]
    )


def _rounded_call(
    layer: Layer,
    call: Callable[..., Tensor],
    scheme: IntegerScheme,
    inputs: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    kernel = _round_channels(layer, scheme)
    given = _passing(inputs, round_inputs(layer, inputs, scheme))
    with kernel_replaced(layer, kernel):
        return call(given, *args, **kwargs)


def _round_channels(layer: Layer, scheme: IntegerScheme) -> Tensor:
    """Returns the kernel on the steps of its channels."""
    import tensorflow as tf

    weights = tf.convert_to_tensor(layer.kernel)
    half = levels(kernel_format(layer, scheme).bits - 1)
    kept = {axis % len(weights.shape) for axis in kind_of(layer).output_axes}
    others = [axis for axis in range(len(weights.shape)) if axis not in kept]
    span = tf.reduce_max(tf.abs(weights), axis=others, keepdims=True)
    step = tf.maximum(span / half, weights.dtype.as_numpy_dtype(1e-12))
    return _passing(weights, tf.round(weights / step) * step)


def _passing(values: Tensor, rounded: Tensor) -> Tensor:
    """Returns rounded values, whose gradient is that of the values."""
    import tensorflow as tf

    return values + tf.stop_gradient(rounded - values)
