"""Puts batch normalisations behind layers while factors train.

They go behind layers that one was folded into, and behind convolutions that have none: whoever
exported the network may have folded it. Normalised outputs let factors train at rates that diverge
or crawl without them (Ioffe and Szegedy, 2015). With the mean mu and variance v of a layer's
outputs y in the compressed model, ``gamma (y - mu) / sqrt(v + eps) + beta`` is y itself for
``gamma = sqrt(v + eps)`` and ``beta = mu``: training starts from what was cut, and what it ends at
is folded.

What is normalised has no scale of its own, and folding leaves kernels with any: a first one that
takes values up to 255 has weights of 0.003, of which one step of Adam would leave nothing. So the
kernel of each output is brought to a norm of one, as Salimans and Kingma do ("Weight
normalization", 2016), and factors before it to as much in the mean of their columns.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.graph.fold import fold
from exporter.graph.hooks import watched
from exporter.graph.layers import (
    input_shape,
    is_channels_last,
    kind_of,
    output_shape,
    rebuild,
)
from exporter.graph.network import Network
from exporter.graph.outputs import output_layers
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer, Variable
from exporter.graph.walk import own_weights
from exporter.lowrank.engine import Compressed, Engine
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
            paths: Layers with a kernel and a bias, each called once, by their paths.
            batches: Samples to take the mean and variance of their outputs from.
        """
        network = compressed.network
        layers = {path: network.layers[path] for path in paths}
        statistics = _statistics(network, layers, batches)
        chains: dict[str, tuple[Layer, ...]] = {}
        for path, layer in layers.items():
            given = prod(map(_to_unit_columns, _heads(compressed, layer)))
            weights, scale = _to_unit_outputs(layer, given)
            chains[path] = _chain(layer, weights, *statistics[path], scale)
        self._pairs = {path: chain[:2] for path, chain in chains.items()}
        replacements = {path: Replacement(chain, {}) for path, chain in chains.items()}
        self.compressed = compressed.copy(replacements) if replacements else compressed
        for twin, *_ in chains.values():
            for head in _heads(self.compressed, twin):
                head.assign(head * _to_unit_columns(head))

    def fold_into(self, network: Network) -> None:
        """Assigns the weights of the copy, its normalisations folded, to the original."""
        for path, layer in network.layers.items():
            pair = self._pairs.get(path)
            source = fold(*pair) if pair else self.compressed.network.layers[path]
            for weight, value in zip(own_weights(layer), own_weights(source), strict=True):
                weight.assign(value.numpy())


def normalizable(engine: Engine, compressed: Compressed) -> list[str]:
    """Returns the paths of layers of a compressed model that train better if they are normalised.

    Normalisations that were folded and do not train stay folded. A convolution is left alone if a
    normalisation follows it, or if it computes an output of the model or a single position.
    """
    import keras

    network = compressed.network
    folded = {path: engine.original.layers[norm] for norm, path in engine.folded.items()}
    heads = {id(w) for each in compressed.factors.values() for w in each.weights[:-1]}
    followed = {
        id(layer)
        for _, layer, after in network.links
        if isinstance(after, keras.layers.BatchNormalization)
    }
    excepted = {*followed, *map(id, output_layers(network.model))}

    def lacks_one(layer: Layer) -> bool:
        return (
            hasattr(layer, "kernel_size")
            and kind_of(layer).folds
            and layer.use_bias
            and layer.trainable
            and id(layer) not in excepted
            and _covers_positions(layer)
            and _is_of_keras(layer.activation)
            and not any(id(w) in heads or w.constraint for w in own_weights(layer))
            and network.calls[layer].times == 1
            and not network.calls[layer].obstacle
        )

    return [
        path
        for path, layer in network.layers.items()
        if (folded[path].trainable if path in folded else lacks_one(layer))
    ]


def _is_of_keras(activation: Any) -> bool:
    import keras

    return getattr(keras.activations, getattr(activation, "__name__", ""), None) is activation


def _covers_positions(layer: Layer) -> bool:
    shape = output_shape(layer)
    return any(size != 1 for size in (shape[1:-1] if is_channels_last(layer) else shape[2:]))


def _heads(compressed: Compressed, layer: Layer) -> tuple[Variable, ...]:
    """Returns the factors before the one that a layer holds; none if it holds a whole kernel."""
    own = set(map(id, own_weights(layer)))
    factors = (each.weights for each in compressed.factors.values())
    return next((weights[:-1] for weights in factors if id(weights[-1]) in own), ())


def _to_unit_columns(factor: Variable) -> float:
    """Returns what brings the columns of a factor, its last axis, to a mean square norm of one."""
    norm = float(np.linalg.norm(factor.numpy()))
    return factor.shape[-1] ** 0.5 / norm if norm else 1.0


def _to_unit_outputs(layer: Layer, given: float) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Returns weights that give each output a kernel of norm one, and what scales the outputs.

    ``given`` is what scales the inputs of the layer.
    """
    *others, kernel, bias = layer.get_weights()
    axes = tuple(axis % kernel.ndim for axis in kind_of(layer).output_axes)
    rest = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    norms = np.sqrt((kernel.astype(np.float64) ** 2).sum(axis=rest, keepdims=True))
    scales = 1 / np.where(norms > 0, norms, 1)
    total = given * scales.ravel()
    return [*others, kernel * scales, bias * total], total


def _chain(
    layer: Layer, weights: list[NDArray[Any]], mean: Any, variance: Any, scale: Any
) -> tuple[Layer, ...]:
    """Builds a layer with other weights, and a normalisation that gives back what it computed.

    The mean and the variance are those before outputs were multiplied by ``scale``. An activation
    of the layer comes last.
    """
    import keras

    twin = rebuild(layer, input_shape(layer), weights, activation=None)
    linear = layer.activation is keras.activations.linear
    norm = keras.layers.BatchNormalization(
        axis=-1 if is_channels_last(layer) else 1,
        momentum=MOMENTUM,
        synchronized=True,
        name=layer.name if linear else f"{layer.name}_norm",
        dtype=layer.dtype_policy,
    )
    norm.build(output_shape(layer))
    scaled = scale**2 * variance
    norm.set_weights([np.sqrt(scaled + norm.epsilon) / scale, mean, scale * mean, scaled])
    if linear:
        return twin, norm
    activation = keras.layers.Activation(
        layer.activation, name=layer.name, dtype=layer.dtype_policy
    )
    return twin, norm, activation


def _statistics(
    network: Network, layers: Mapping[str, Layer], batches: Iterable[Batch]
) -> dict[str, tuple[Any, Any]]:
    """Returns mean and variance of the channels that layers give their activation, by path."""
    signature = network.signature
    seen: dict[str, list[Any]] = {path: [] for path in layers}
    for batch in batches:
        with watched([(layer, "activation") for layer in layers.values()]) as results:
            signature(**signature.tensors(batch.inputs))
        for path, layer in layers.items():
            (outputs,) = results[id(layer)]
            values = np.moveaxis(outputs.numpy(), -1 if is_channels_last(layer) else 1, -1)
            rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
            seen[path].append((rows.mean(axis=0), rows.var(axis=0)))
    found = {}
    for path, parts in seen.items():
        means, variances = map(np.array, zip(*parts, strict=True))
        found[path] = means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
    return found
