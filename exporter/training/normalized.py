"""Puts batch normalisations back behind layers that they were folded into, while factors train.

Normalised outputs let factors train at rates that diverge or crawl without them (Ioffe and Szegedy,
2015). With the mean mu and variance v of a layer's outputs y in the compressed model,
``gamma (y - mu) / sqrt(v + eps) + beta`` is y itself for ``gamma = sqrt(v + eps)`` and
``beta = mu``: training starts from what was cut, and what it ends at is folded again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from exporter.graph.fold import fold
from exporter.graph.hooks import called
from exporter.graph.layers import input_shape, is_channels_last, output_shape, rebuild
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer
from exporter.graph.walk import own_weights
from exporter.lowrank.engine import Compressed
from exporter.training.data import Batch

LEAST_BATCH = 16
"""The fewest samples of a training step whose mean and variance are worth normalising by."""

MOMENTUM = 0.9
"""Of the moving statistics: short trainings take few steps."""


class Normalized:
    """A copy of a compressed model with batch normalisations behind some of its layers.

    Attributes:
        compressed: The copy, to be trained; the model itself if nothing is to be normalised.
    """

    def __init__(
        self, compressed: Compressed, paths: Iterable[str], batches: Iterable[Batch]
    ) -> None:
        """Copies a model, which computes the same in inference.

        Args:
            compressed: The model; it is not changed.
            paths: Linear layers with a bias, each called once, by their paths.
            batches: Samples to take the mean and variance of their outputs from.
        """
        network = compressed.network
        layers = {path: network.layers[path] for path in paths}
        statistics = _statistics(network, layers, batches)
        self._pairs: dict[str, tuple[Layer, Layer]] = {}
        for path, layer in layers.items():
            twin = rebuild(layer, input_shape(layer), layer.get_weights())
            self._pairs[path] = (twin, _identity(layer, *statistics[path]))
        replacements = {path: Replacement(pair, {}) for path, pair in self._pairs.items()}
        self.compressed = compressed.copy(replacements) if replacements else compressed

    def fold_into(self, network: Network) -> None:
        """Assigns the weights of the copy, its normalisations folded, to the original."""
        for path, layer in network.layers.items():
            pair = self._pairs.get(path)
            source = fold(*pair) if pair else self.compressed.network.layers[path]
            for weight, value in zip(own_weights(layer), own_weights(source), strict=True):
                weight.assign(value.numpy())


def _identity(layer: Layer, mean: Any, variance: Any) -> Layer:
    """Builds a normalisation that changes nothing of outputs with this mean and variance."""
    import keras

    norm = keras.layers.BatchNormalization(
        axis=-1 if is_channels_last(layer) else 1,
        momentum=MOMENTUM,
        synchronized=True,
        name=layer.name,
        dtype=layer.dtype_policy,
    )
    norm.build(output_shape(layer))
    norm.set_weights([np.sqrt(variance + norm.epsilon), mean, mean, variance])
    return norm


def _statistics(
    network: Network, layers: Mapping[str, Layer], batches: Iterable[Batch]
) -> dict[str, tuple[Any, Any]]:
    """Returns mean and variance of the channels that layers return, by path."""
    signature = network.signature
    seen: dict[str, list[Any]] = {path: [] for path in layers}
    for batch in batches:
        with called(layers.values()) as calls:
            signature(**signature.tensors(batch.inputs))
        for path, layer in layers.items():
            (_, outputs), *_ = calls[id(layer)]
            values = np.moveaxis(outputs.numpy(), -1 if is_channels_last(layer) else 1, -1)
            rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
            seen[path].append((rows.mean(axis=0), rows.var(axis=0)))
    found = {}
    for path, parts in seen.items():
        means, variances = map(np.array, zip(*parts, strict=True))
        found[path] = means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
    return found
