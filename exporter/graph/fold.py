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
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer


def fold_batch_norms(network: Network) -> tuple[Network, dict[str, str]]:
    """Folds every batch normalisation that follows a linear layer at once.

    With the moving mean mu and variance v, ``gamma (K x + b - mu) / sqrt(v + eps) + beta`` is the
    linear layer of kernel ``s K`` and bias ``s (b - mu) + beta``, where
    ``s = gamma / sqrt(v + eps)``: what the model computes in inference stays the same.

    A pair stays as it is where one of the two is called twice, where something else sees the linear
    layer's output, where an activation stands between them, and where the normalisation gives an
    output of the model its name.

    Args:
        network: It is not changed.

    Returns:
        A copy, or the network itself if there is nothing to fold; and, by the path of each
        normalisation, the path of the layer that it went into.

    Raises:
        ModelError: If a layer cannot be copied from its configuration.
    """
    named = {id(tensor._keras_history.operation) for tensor in network.model.outputs}
    replacements, went_into = {}, {}
    for prefix, linear, norm in network.links:
        names_output = not prefix and id(norm) in named
        if not names_output and _takes(linear, norm):
            path = f"{prefix}{linear.name}"
            replacements[path] = Replacement((_folded(linear, norm),), {})
            went_into[f"{prefix}{norm.name}"] = path
    if not replacements:
        return network, {}
    return network.rewrite(replacements, dropped=went_into), went_into


def _takes(linear: Layer, norm: Layer) -> bool:
    """Tells whether a layer can take a normalisation up."""
    import keras

    if type(norm) is not keras.layers.BatchNormalization or not kind_of(linear).folds:
        return False
    axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
    rank = len(output_shape(linear))
    return (
        linear.activation is keras.activations.linear
        and not unsupported_feature(linear)
        and [axis % rank for axis in axes] == [rank - 1 if is_channels_last(linear) else 1]
    )


def _folded(linear: Layer, norm: Layer) -> Layer:
    """Builds the linear layer that computes both."""

    def read(name: str, default: float) -> Any:
        variable = getattr(norm, name)
        return default if variable is None else variable.numpy().astype(np.float64)

    scale = read("gamma", 1.0) / np.sqrt(read("moving_variance", 1.0) + norm.epsilon)
    bias = linear.bias.numpy().astype(np.float64) if linear.use_bias else 0.0
    shift = scale * (bias - read("moving_mean", 0.0)) + read("beta", 0.0)
    *others, kernel = linear.get_weights()[: -1 if linear.use_bias else None]
    axes = kind_of(linear).output_axes
    sizes = [
        size if axis in axes else 1
        for axis, size in zip(range(-kernel.ndim, 0), kernel.shape, strict=True)
    ]
    weights = [*others, kernel.astype(np.float64) * scale.reshape(sizes), shift]
    # Constraints spoke of what the weights were before.
    freed = {key: None for key in linear.get_config() if key.endswith("_constraint")}
    return rebuild(linear, input_shape(linear), weights, use_bias=True, **freed)
