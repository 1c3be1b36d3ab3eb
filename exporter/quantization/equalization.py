"""Cross-layer equalization: rescales the channels between two linear layers.

Where ``f(s x) = s f(x)`` for every s > 0, as for ReLU, a layer may make each channel s times as
large, and the next one divide by s (Nagel et al., 2019): in float nothing changes.
"""

from collections.abc import Iterator

import numpy as np

from exporter.graph.layers import activation_of, is_channels_last, kind_of
from exporter.graph.network import Network
from exporter.graph.types import Layer
from exporter.lowrank.linalg.moments import Floats

_HALVINGS = 8
"""Number of times that the largest rows of a kernel are halved."""


def sources(network: Network) -> dict[int, Layer]:
    """Finds the layers that can take over scales of the input of a linear layer.

    Returns:
        The layer whose outputs are its only inputs, by the identity of the linear layer.
    """
    before = {id(layer): (source, layer) for _, source, layer in network.links}
    found = {}
    for source, layer in before.values():
        while _passes(source) and id(source) in before:
            source, _ = before[id(source)]  # noqa: PLW2901
        if kind_of(layer).is_product and _is_scalable(source):
            found[id(layer)] = source
    return found


def _passes(layer: Layer) -> bool:
    passes = kind_of(layer).passes
    return passes is not None and passes(layer) and is_channels_last(layer)


def _is_scalable(layer: Layer) -> bool:
    """Tells whether a layer can make each of its channels larger by a factor."""
    linear = kind_of(layer).is_product and is_channels_last(layer)
    return linear and activation_of(layer).homogeneous


def free_scales(source: Layer, largest: Floats, first: Floats) -> Iterator[Floats]:
    """Yields scales of channels that lower the largest rows of a kernel at no cost for the source.

    No scale is below one, and none makes a channel the largest of the source's kernel or outputs:
    their quantization steps stay as they are.

    Args:
        source: A layer that ``sources`` found.
        largest: The largest magnitudes of its outputs on calibration data, along their last axis,
            which has its channels once or several times.
        first: The kernel that the outputs are multiplied by, with some rows for each channel.
    """
    kernel = np.abs(source.kernel.numpy().astype(np.float64))
    channels = kernel.shape[-1]
    before = kernel.reshape(-1, channels).max(axis=0)
    results = largest.reshape(-1, channels).max(axis=0)
    rows = np.abs(first).reshape(-1, channels, first.shape[-1]).max(axis=(0, 2))
    if not rows.any():
        return
    # A channel without values may have any scale.
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.fmin(before.max() / before, results.max() / results)
    former = np.ones(channels)
    for halving in range(1, _HALVINGS + 1):
        scales = np.fmin(np.maximum(rows / rows.max() * 2**halving, 1.0), most)
        if not np.array_equal(scales, former):
            yield scales
        former = scales


def scale(source: Layer, scales: Floats) -> None:
    """Multiplies the output channels of a layer by scales."""
    for weight in source.weights:
        weight.assign(weight.numpy() * scales)
