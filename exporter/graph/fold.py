"""Folds batch normalisations into the linear layers before them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.graph.layers import (
    input_shape,
    is_channels_last,
    kind_of,
    rebuild,
    unsupported_feature,
)
from exporter.graph.rewrite import Replacement, rewrite
from exporter.graph.walk import links


@dataclass(frozen=True)
class _Pair:
    """A linear layer and the normalisation that follows it at once."""

    linear_path: str
    linear: Any
    norm_path: str
    norm: Any


def fold_batch_norms(model: Any) -> tuple[Any, dict[str, str]]:
    """Folds every batch normalisation that follows a linear layer at once.

    With the moving mean mu and variance v, ``gamma (K x + b - mu) / sqrt(v + eps) + beta`` is the
    linear layer of kernel ``s K`` and bias ``s (b - mu) + beta``, where
    ``s = gamma / sqrt(v + eps)``: what the model computes in inference stays the same.

    A pair stays as it is where one of the two is called twice, where something else sees the linear
    layer's output, where an activation stands between them, and where the normalisation gives an
    output of the model its name.

    Args:
        model: A model that ``check_rewritable`` accepts.

    Returns:
        A copy, or the model itself if there is nothing to fold; and the path of the layer that each
        normalisation went into, by its own path.

    Raises:
        ModelError: If a layer cannot be copied from its configuration.
    """
    pairs = list(_pairs(model))
    if not pairs:
        return model, {}
    replacements = {
        pair.linear_path: Replacement((_folded(pair.linear, pair.norm),), {}) for pair in pairs
    }
    copy = rewrite(model, replacements, dropped=[pair.norm_path for pair in pairs])
    return copy, {pair.norm_path: pair.linear_path for pair in pairs}


def _pairs(model: Any) -> Iterator[_Pair]:
    import keras

    named = {id(tensor._keras_history.operation) for tensor in model.outputs}
    for prefix, linear, norm in links(model):
        names_output = not prefix and id(norm) in named
        if (
            type(norm) is keras.layers.BatchNormalization
            and not names_output
            and _takes(linear, norm)
        ):
            yield _Pair(f"{prefix}{linear.name}", linear, f"{prefix}{norm.name}", norm)


def _takes(linear: Any, norm: Any) -> bool:
    """Tells whether a layer can take a normalisation up."""
    import keras

    if not kind_of(linear).folds:
        return False
    axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
    rank = len(linear._inbound_nodes[0].outputs[0].shape)
    return (
        linear.activation is keras.activations.linear
        and not unsupported_feature(linear)
        and [axis % rank for axis in axes] == [rank - 1 if is_channels_last(linear) else 1]
    )


def _folded(linear: Any, norm: Any) -> Any:
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
