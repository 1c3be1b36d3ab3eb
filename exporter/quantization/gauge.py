"""Chooses the gauge of a model: for each product, the factor pair with the least int8 error.

A factorized layer is ``y = (x K1) K2 + b``. For any invertible R, ``(x K1 R) (R^-1 K2)`` is equal
in float. In integers all numbers of a tensor share one step, so the error is smaller if its columns
are of similar size. ``(x K1 - c) K2 + (b + c K2)`` is equal in float too, and its latent is smaller
if c is the mean. R, c, and scales of x, which the layer before takes over, are chosen layer by
layer by the error of the layer's outputs in simulated integers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise, product, starmap
from typing import Any, Literal, NamedTuple

import numpy as np

from exporter.graph.hooks import called, replaced
from exporter.graph.layers import input_shape, is_channels_last, kind_of, rebuild
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Layer, Tensor
from exporter.lowrank.calibration import Calibration, in_large_batches
from exporter.lowrank.engine import Compressed
from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.equalization import sources
from exporter.quantization.pair import AS_CUT, Consecutive, FactorPair, LayerGauge
from exporter.quantization.scheme import IntegerScheme
from exporter.quantization.simulation import Simulation, linear_layers, restored

GAUGE_SAMPLES = 500
"""Number of calibration samples that a gauge is chosen on."""

ATTEMPTS = 3
"""Number of passes over the layers, each with other rotations."""

_MOST_BYTES = 2**30
"""Memory for the inputs of all pairs, in equal shares, of one batch at least.

Their rounded inputs and expected outputs are kept, too.
"""


@dataclass(frozen=True)
class GaugeReport:
    """The gauges of a model.

    Attributes:
        scheme: ``"dynamic"`` or ``"static"`` activations of the integer scheme.
        layers: One entry for each factor pair.
        snr_before: Signal to noise ratio of the model's outputs in simulated integers, with the
            factors as cut, in decibels.
        snr_after: The ratio with the chosen factors.
    """

    scheme: Literal["dynamic", "static"]
    layers: tuple[LayerGauge, ...]
    snr_before: float
    snr_after: float


@dataclass(frozen=True)
class Gauged:
    """A copy of a compressed model whose factors have less error in integers, and its report."""

    compressed: Compressed
    report: GaugeReport


def regauge(
    compressed: Compressed,
    calibration: Calibration,
    scheme: IntegerScheme,
    *,
    seed: int = 0,
    attempts: int = ATTEMPTS,
) -> Gauged:
    """Chooses the gauge of each factor pair whose latent has no other use.

    Layers with groups, recurrent layers, and factors U, S and V stay as they are.

    Args:
        compressed: The model; it is not changed.
        calibration: Calibration data; the first ``GAUGE_SAMPLES`` are used.
        scheme: The integer scheme of the quantized model, with its granularity.
        seed: Seed of the rotations.
        attempts: Number of passes over all layers, with other rotations. The best model is kept:
            errors of single layers do not add up to the error of the model.

    Returns:
        A copy, with the factors as cut if no attempt has less error in simulated integers.
    """
    calibration = calibration.head(GAUGE_SAMPLES)
    if scheme.activations == "static" or scheme.dynamic_range == "row":
        calibration = in_large_batches(calibration, compressed.network)
    copy = compressed.copy()
    network = copy.network
    simulation = Simulation(network, calibration)
    # Pairs are chosen for activations of 8 bits: pairs chosen for 16 bits lost 1.4 to 1.8 dB on
    # fresh data, because the range of a latent hardly counts and more data are clipped.
    # For kernels in 4 bits, pairs chosen for 8 bits are sometimes better together.
    widths = dict.fromkeys((scheme.weight_bits, 8))
    schemes = [replace(scheme, weight_bits=bits, activation_bits=8) for bits in widths]
    before, pairs = simulation.snr(network, scheme), list(_factor_pairs(copy, calibration))
    weights = [weight for layer in linear_layers(network) for weight in layer.weights]

    def attempt(seed: int, scheme_of_pairs: IntegerScheme) -> _Attempt:
        generator = np.random.default_rng(seed)
        with restored(weights):
            # Pairs may overlap: the next one may begin with the second factor of this one.
            layers = tuple(pair.choose(generator, scheme_of_pairs) for pair in pairs)
            means = {id(pair.layers[0]): pair.mean for pair in pairs if pair.mean is not None}
            with _shifted([(pair.layers[0], pair.mean) for pair in pairs]):
                ratio = simulation.snr(network, scheme)
            return _Attempt(ratio, layers, means, [weight.numpy() for weight in weights])

    tried = starmap(attempt, product(range(seed, seed + attempts), schemes if pairs else ()))
    best = max(tried, key=lambda each: each.snr, default=None)
    if best is None or best.snr < before:
        layers = () if best is None else best.layers
        layers = tuple(replace(x, gauge=AS_CUT, snr_after=x.snr_before) for x in layers)
        return Gauged(copy, GaugeReport(scheme.activations, layers, before, before))
    for weight, value in zip(weights, best.weights, strict=True):
        weight.assign(value)
    report = GaugeReport(scheme.activations, best.layers, before, best.snr)
    return Gauged(_centred(copy, best.means) if best.means else copy, report)


class _Attempt(NamedTuple):
    """The gauges of all layers, means of latents by layer, and the weights that they lead to."""

    snr: float
    layers: tuple[LayerGauge, ...]
    means: dict[int, Floats]
    weights: list[Floats]


def _shifted(means: Iterable[tuple[Layer, Floats | None]]) -> AbstractContextManager[None]:
    """Has layers subtract means from their outputs, as a new bias will."""

    def shifted(call: Callable[..., Tensor], mean: Floats) -> Callable[..., Tensor]:
        def shift(*args: Any, **kwargs: Any) -> Tensor:
            result = call(*args, **kwargs)
            return result - mean.astype(result.dtype.as_numpy_dtype)

        return shift

    return replaced(
        [(layer, "call", shifted(layer.call, mean)) for layer, mean in means if mean is not None]
    )


def _factor_pairs(compressed: Compressed, calibration: Calibration) -> Iterator[FactorPair]:
    """Yields the factor pairs whose second layer takes exactly the outputs of the first."""
    found = list(_consecutive(compressed))
    pairs = [layers for _, _, layers in found]
    network = compressed.network
    inputs, before = _inputs_of(network, pairs, calibration), sources(network)
    for entry, (first, _), given in zip(found, pairs, inputs, strict=True):
        if given is not None:
            yield FactorPair(entry, given, before.get(id(first)))


def _consecutive(compressed: Compressed) -> Iterator[Consecutive]:
    """Yields the names, weights and layers of consecutive factors."""
    owners = {
        id(variable): layer
        for layer in linear_layers(compressed.network)
        for variable in layer.weights
    }
    for name, factors in compressed.factors.items():
        if len(factors.weights) > 2 and factors.matrices[0][0] == factors.replaced[0]:
            continue  # U, S and V, kept apart as they were asked for.
        for weights in pairwise(factors.weights):
            if not all(id(weight) in owners for weight in weights):
                continue
            first, last = (owners[id(weight)] for weight in weights)
            if _is_plain(first) and _is_plain(last) and _gives_latent(first):
                yield name if len(factors.weights) == 2 else first.name, weights, (first, last)


def with_latent_biases(compressed: Compressed) -> Compressed:
    """Copies a model with random biases on the latents whose mean a gauge may take off."""
    generator = np.random.default_rng(0)
    means = {
        id(first): generator.normal(size=first.kernel.shape[-1])
        for _, _, (first, last) in _consecutive(compressed)
        if last.bias is not None
    }
    return _centred(compressed, means)


def _centred(compressed: Compressed, means: Mapping[int, Floats | None]) -> Compressed:
    """Copies a model with biases that subtract means, by the identity of the layer."""
    replacements = {}
    for path, layer in compressed.network.layers.items():
        mean = means.get(id(layer))
        if mean is not None:
            _, _, output = getattr(layer, "equation", "").partition("->")
            change = {"bias_axes": output[-1]} if output else {"use_bias": True}
            twin = rebuild(layer, input_shape(layer), [layer.kernel.numpy(), -mean], **change)
            replacements[path] = Replacement((twin,), {})
    return compressed.copy(replacements)


def _is_plain(layer: Layer) -> bool:
    """Tells whether a layer multiplies the last axis of its input, or windows, by one matrix."""
    ungrouped = getattr(layer, "groups", 1) == 1
    return kind_of(layer).holds_factor and is_channels_last(layer) and ungrouped


def _gives_latent(layer: Layer) -> bool:
    """Tells whether a layer is linear without bias, its last output axis that of its kernel."""
    operands, _, output = getattr(layer, "equation", "r->r").partition("->")
    linear = getattr(layer.activation, "__name__", "linear") == "linear"
    return layer.bias is None and linear and output.endswith(operands[-1])


def _inputs_of(
    network: Network, pairs: Sequence[tuple[Layer, Layer]], calibration: Calibration
) -> list[Tensor | None]:
    """Returns the inputs of the first layer of each pair, or None if the second has others.

    If a layer is called on several sizes, only the inputs of the first size are returned.
    """
    import tensorflow as tf

    share = _MOST_BYTES // max(1, len(pairs))
    signature = network.signature
    given: list[list[Tensor]] = [[] for _ in pairs]
    for batch in calibration.batches():
        with called(layer for pair in pairs for layer in pair) as calls:
            signature(**signature.tensors(batch))
        for parts, (first, last) in zip(given, pairs, strict=True):
            made = {id(result) for _, result in calls[id(first)]}
            if made != {id(inputs) for inputs, _ in calls[id(last)]}:
                continue
            if sum(int(tf.size(part)) * part.dtype.size for part in parts) < share:
                size = calls[id(first)][0][0].shape[1:]
                parts.extend(part for part, _ in calls[id(first)] if part.shape[1:] == size)
    return [tf.concat(parts, axis=0) if parts else None for parts in given]
