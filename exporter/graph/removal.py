"""Copies a network without some of the channels of its layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.graph.channels import ChannelGraph, Floats, Indices, Lane
from exporter.graph.layers import input_shapes, kind_of, rebuild
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer


@dataclass(frozen=True)
class Refit:
    """How a consumer makes up for the channels that it loses.

    Attributes:
        matrix: The linear map of all channels from those that stay, channels x kept.
        constant: What is added to it, one number a channel.
    """

    matrix: Floats
    constant: Floats


def remove_channels(
    graph: ChannelGraph,
    network: Network,
    removed: Iterable[int],
    refits: Mapping[str, Refit] | None = None,
) -> Network:
    """Copies a network without some of its channels.

    The copy computes the same if each consumer's refit gives exactly what it loses.

    Args:
        graph: The channels of the network.
        network: The network; it is not changed.
        removed: Their numbers.
        refits: By path of the consumer; others lose what they had of these channels.

    Returns:
        The copy, an ordinary Keras model whose layers have fewer units or filters.
    """
    gone = np.array(sorted(removed), dtype=np.intp)
    replacements = {}
    for path, layer in graph.followed.items():
        inputs, output = graph.lanes(path)
        if any(np.isin(lane.ids, gone).any() for lane in (*inputs, output)):
            slim = _slimmed(layer, inputs, output, gone, (refits or {}).get(path))
            replacements[path] = Replacement((slim,), {})
    return network.rewrite(replacements)


def _slimmed(
    layer: Layer, inputs: Sequence[Lane], output: Lane, gone: Indices, refit: Refit | None
) -> Layer:
    """Builds a layer that takes and makes fewer channels."""
    made = _staying(output.spread, gone)
    role, weights = kind_of(layer).channels, layer.get_weights()
    changes: dict[str, Any] = {}
    if kind_of(layer).makes_channels:
        if refit is None:
            stays = _staying(inputs[0].ids, gone)
            size = len(inputs[0].ids)
            refit = Refit(np.eye(size)[:, stays], np.zeros(size))
        weights = _fitted_weights(layer, refit, made)
        changes["units" if hasattr(layer, "units") else "filters"] = len(made)
    elif role == "depthwise":
        weights[0] = weights[0][..., _staying(inputs[0].spread, gone), :]
        weights[1:] = [weight[made] for weight in weights[1:]]
    elif role == "scaled":
        weights = [weight[..., made] for weight in weights]
    elif hasattr(layer, "target_shape"):
        changes["target_shape"] = (*layer.target_shape[:-1], len(made))
    shapes = [
        (*shape[:-1], len(_staying(lane.spread, gone)))
        for shape, lane in zip(input_shapes(layer), inputs, strict=True)
    ]
    return rebuild(layer, shapes if len(shapes) > 1 else shapes[0], weights, **changes)


def _staying(ids: Indices, gone: Indices) -> Indices:
    return np.flatnonzero(~np.isin(ids, gone))


def _fitted_weights(layer: Layer, refit: Refit, made: Indices) -> list[Any]:
    """Returns kernel and bias of a layer for the channels that its refit takes."""
    kernel, *bias = layer.get_weights()
    swapped = kind_of(layer).channels == "transposed"
    if swapped:
        kernel = np.swapaxes(kernel, -1, -2)
    size, kept = refit.matrix.shape
    blocks = kernel.astype(np.float64).reshape(-1, size, kernel.shape[-1])
    bias = [each + np.einsum("pcn,c->n", blocks, refit.constant) for each in bias]
    blocks = np.matmul(refit.matrix.T, blocks)
    # The channels of a dense layer are repeated along its only input axis.
    sizes = (-1,) if kernel.ndim == 2 else (*kernel.shape[:-2], kept)
    kernel = blocks.reshape(*sizes, kernel.shape[-1])[..., made]
    return [np.swapaxes(kernel, -1, -2) if swapped else kernel, *(each[made] for each in bias)]
