"""Equalization across activations: the sizes of the channels between two linear layers.

Where ``f(s x) = s f(x)`` for every s > 0, as of ReLU, a layer may make each channel s times as
large, and the next one multiply it by an s-th (Nagel et al., 2019): in float nothing changes.
"""

from collections.abc import Iterator

import numpy as np

from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor
from exporter.lowrank.linalg.moments import Floats

_HALVINGS = 8
"""How often the largest rows of a kernel are lowered by half."""

_LINEAR = {"Dense", "Conv1D", "Conv2D", "Conv3D"}
"""Layers that multiply channels, the last axis, by a kernel, whose last axis they become."""

_HOMOGENEOUS = {"linear", "relu", "leaky_relu"}

_PASSING = {"Flatten", "Dropout", "LeakyReLU"} | {
    f"{kind}{dimensions}D"
    for kind in ("MaxPooling", "ZeroPadding", "SpatialDropout")
    for dimensions in (1, 2, 3)
}
"""Layers that keep channels apart, in their order, and the largest values."""


def sources(network: Network) -> dict[int, Layer]:
    """Finds the layers that have scales in common with the one before.

    Returns:
        By identity of a linear layer, the one whose outputs are its inputs, and nobody else's.
    """
    before = {id(layer): (source, layer) for _, source, layer in network.links}
    found = {}
    for source, layer in before.values():
        while _passes(source) and id(source) in before:
            source, _ = before[id(source)]  # noqa: PLW2901
        if {type(source).__name__, type(layer).__name__} <= _LINEAR and _is_homogeneous(source):
            found[id(layer)] = source
    return found


def _passes(layer: Layer) -> bool:
    kind = type(layer).__name__
    return (
        (kind in _PASSING and _is_channels_last(layer))
        or (kind == "Activation" and _is_homogeneous(layer))
        or (kind == "ReLU" and layer.max_value is None and not layer.threshold)
    )


def _is_homogeneous(layer: Layer) -> bool:
    name = getattr(layer.activation, "__name__", "")
    return name in _HOMOGENEOUS and _is_channels_last(layer)


def _is_channels_last(layer: Layer) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def free_scales(source: Layer, inputs: Tensor, first: Floats) -> Iterator[Floats]:
    """Yields scales of channels that lower the largest rows of a kernel, and cost nothing before.

    No scale is below one, nor such that a channel would be the largest of the source's kernel or of
    its results: these take the steps that they took.

    Args:
        source: A layer that ``sources`` found.
        inputs: What comes of it on calibration data; its last axis is that of the channels, once or
            several times.
        first: The kernel that the inputs are multiplied by, of which each channel has some rows.
    """
    kernel = np.abs(source.kernel.numpy().astype(np.float64))
    channels = kernel.shape[-1]
    before = kernel.reshape(-1, channels).max(axis=0)
    results = np.abs(np.asarray(inputs, np.float64)).reshape(-1, channels).max(axis=0)
    rows = np.abs(first).reshape(-1, channels, first.shape[-1]).max(axis=(0, 2))
    if not rows.any():
        return
    # Of channels without values: any.
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.fmin(before.max() / before, results.max() / results)
    for halving in range(1, _HALVINGS + 1):
        yield np.fmin(np.maximum(rows / rows.max() * 2**halving, 1.0), most)


def scale(source: Layer, scales: Floats) -> None:
    """Has a layer make each channel as many times as large."""
    for weight in source.weights:
        weight.assign(weight.numpy() * scales)
