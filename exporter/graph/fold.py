"""Folds batch normalisations into the linear layers before them."""

from typing import Any

import numpy as np

from exporter.graph.layers import (
    input_shape,
    is_channels_last,
    kind_of,
    output_shape,
    rebuild,
    unsupported_feature,
)
from exporter.graph.network import Network
from exporter.graph.outputs import output_layers
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer


def fold_batch_norms(network: Network) -> tuple[Network, dict[str, str]]:
    """Folds every batch normalisation that follows a linear layer at once.

    With the moving mean mu and variance v, ``gamma (K x + b - mu) / sqrt(v + eps) + beta`` is the
    linear layer of kernel ``s K`` and bias ``s (b - mu) + beta``, where
    ``s = gamma / sqrt(v + eps)``. So the model computes the same in inference.

    A pair is kept where one of the two is called twice, where something else sees the linear
    layer's output, where an activation stands between them, and where the normalisation gives an
    output of the model its name.

    Returns:
        A copy, or the network itself if there is nothing to fold; and the path of the linear layer
        by the path of the normalisation that was folded into it.

    Raises:
        ModelError: If a layer cannot be copied from its configuration.
    """
    named = set(map(id, output_layers(network.model)))
    replacements, went_into = {}, {}
    for prefix, linear, norm in network.links:
        if (prefix or id(norm) not in named) and _can_fold(linear, norm):
            path = f"{prefix}{linear.name}"
            replacements[path] = Replacement((fold(linear, norm),), {})
            went_into[f"{prefix}{norm.name}"] = path
    if not replacements:
        return network, {}
    return network.rewrite(replacements, dropped=went_into), went_into


def _can_fold(linear: Layer, norm: Layer) -> bool:
    import keras

    if type(norm) is not keras.layers.BatchNormalization or not kind_of(linear).folds:
        return False
    rank = len(output_shape(linear))
    return (
        linear.activation is keras.activations.linear
        and not unsupported_feature(linear)
        and [axis % rank for axis in np.atleast_1d(norm.axis)]
        == [rank - 1 if is_channels_last(linear) else 1]
    )


def fold(linear: Layer, norm: Layer) -> Layer:
    """Builds the linear layer that computes both; statistics are combined in float64."""

    def read(name: str, default: float) -> Any:
        variable = getattr(norm, name)
        return default if variable is None else variable.numpy().astype(np.float64)

    scale = read("gamma", 1.0) / np.sqrt(read("moving_variance", 1.0) + norm.epsilon)
    bias = linear.bias.numpy().astype(np.float64) if linear.use_bias else 0.0
    shift = scale * (bias - read("moving_mean", 0.0)) + read("beta", 0.0)
    *others, kernel = linear.get_weights()[: -1 if linear.use_bias else None]
    axes = [axis % kernel.ndim for axis in kind_of(linear).output_axes]
    sizes = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    weights = [*others, kernel.astype(np.float64) * scale.reshape(sizes), shift]
    # Constraints were meant for the weights before folding.
    freed = {key: None for key in linear.get_config() if key.endswith("_constraint")}
    return rebuild(linear, input_shape(linear), weights, use_bias=True, **freed)
