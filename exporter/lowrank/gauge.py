"""The gauge: which of the many pairs of factors of one product is kept, for integers.

A factorized layer is ``y = (x K1) K2 + b``. For any invertible R, ``(x K1 R) (R^-1 K2)`` is the
same in float, but not in 8 bits, where each tensor has one step for all of its numbers: the nearer
its columns are to one size, the less is lost. Likewise ``(x K1 - c) K2 + (b + c K2)``, whose latent
is smaller where c is its mean. Both are chosen layer by layer, by what the layer's outputs lose in
simulated integers; so are scales of x, which the layer before takes over.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from exporter.formats.base import Granularity, Signature
from exporter.lowrank.coordinates import Steps, balanced, random_rotation, refined, whitened
from exporter.lowrank.engine import Compressed
from exporter.lowrank.equalization import free_scales, scale, sources
from exporter.lowrank.factorizers.base import Replacement, input_shape, rebuild
from exporter.lowrank.moments import Array
from exporter.lowrank.rewrite import walk
from exporter.lowrank.simulation import (
    Scheme,
    Simulation,
    kernel_granularity,
    linear_layers,
    round_inputs,
    round_kernels,
)
from exporter.lowrank.statistics import Calibration, tensors_of
from exporter.lowrank.taps import called, replaced
from exporter.metrics import snr_db

GAUGE_SAMPLES = 500
"""Calibration samples that a gauge is chosen on."""

AS_CUT = "as cut"

ATTEMPTS = 3
"""How often the layers are gone through, each time with other rotations."""

_LEAST_GAIN = 0.5
"""Decibels that taking off a mean has to gain: the bias makes the artifact larger."""

_MOST_ROWS = 4096
"""Of latents that ranges are predicted from."""

_MOST_BYTES = 2**30
"""Of the inputs of all layers, which share them alike, and have one batch at least."""


@dataclass(frozen=True)
class LayerGauge:
    """The gauge of one kernel's factors.

    Attributes:
        name: Of the kernel in the plan; of the layer of the first factor, where there are three.
        gauge: ``"as cut"``; ``"balanced"``, where both factors have the singular values of their
            product to the power of a half; ``"whitened"``, likewise of the product as the data see
            it. These two may be followed by ``", rotated"``; each by ``", equalized"``, where the
            layer before took scales of channels over, by ``", centred"``, where a bias takes off
            the mean of the latent, and by ``", refined"``: moved on to where the least noise is
            predicted.
        snr_before: Signal to noise ratio of the layer's outputs in simulated integers as cut, in
            decibels.
        snr_after: Likewise in the gauge.
    """

    name: str
    gauge: str
    snr_before: float
    snr_after: float


@dataclass(frozen=True)
class GaugeReport:
    """The gauges of a model.

    Attributes:
        scheme: Of the integers that they were chosen for: ``"dynamic"`` or ``"static"``.
        layers: One entry for each kernel whose factors have a choice.
        snr_before: Signal to noise ratio of the model's outputs in simulated integers as cut, in
            decibels.
        snr_after: Likewise in the gauges.
    """

    scheme: Scheme
    layers: tuple[LayerGauge, ...]
    snr_before: float
    snr_after: float


@dataclass(frozen=True)
class Gauged:
    """A compressed model of the same function whose factors lose less in integers.

    Attributes:
        compressed: With a model and weights of its own.
        report: What was chosen.
    """

    compressed: Compressed
    report: GaugeReport


def regauge(
    compressed: Compressed,
    calibration: Calibration,
    scheme: Scheme,
    *,
    granularity: Granularity = "tensor",
    seed: int = 0,
    attempts: int = ATTEMPTS,
) -> Gauged:
    """Chooses the gauge of each layer whose factors meet in a latent that nothing else sees.

    The others stay as they are: layers with groups, or recurrent, or of U, S and V.

    Args:
        compressed: The model; it is not changed.
        calibration: Inputs, of which the first ``GAUGE_SAMPLES`` are looked at.
        scheme: How the model is to be quantized.
        granularity: Whether kernels will have one scale, or one an output channel.
        seed: Of the rotations.
        attempts: How often all layers are gone through, with other rotations. The best model is
            kept: what layers lose each on their own is not what they lose together.

    Returns:
        A copy. Where its outputs would lose more in simulated integers than before, its factors
        are those that were cut.
    """
    calibration = calibration.head(GAUGE_SAMPLES)
    simulation = Simulation(compressed.model, calibration, scheme, granularity)
    before = simulation.snr(compressed.model)

    def attempt(seed: int) -> Gauged:
        copy, generator = compressed.copy(), np.random.default_rng(seed)
        junctions = _junctions(copy, calibration, scheme, granularity)
        layers, means = [], {}
        for junction in junctions:
            layers.append(junction.choose(generator))
            means.update(junction.mean_by_layer)
        copy = _centred(copy, means)
        report = GaugeReport(scheme, tuple(layers), before, simulation.snr(copy.model))
        return Gauged(copy, report)

    tried = map(attempt, range(seed, seed + attempts))
    best = max(tried, key=lambda gauged: gauged.report.snr_after)
    if best.report.snr_after >= before:
        return best
    layers = [replace(each, gauge=AS_CUT, snr_after=each.snr_before) for each in best.report.layers]
    return Gauged(compressed.copy(), GaugeReport(scheme, tuple(layers), before, before))


class _Trial(NamedTuple):
    """Factors that were tried with scales of what goes into them."""

    snr: float
    gauge: str
    pair: tuple[Array, Array]
    scales: Array | None
    mean: Array | None


class _Junction:
    """Where two factors meet, with nothing but a latent in between."""

    def __init__(
        self,
        name: str,
        weights: tuple[Any, Any],
        layers: tuple[Any, Any],
        *,
        inputs: Any,
        source: Any,
        scheme: Scheme,
        granularity: Granularity,
    ) -> None:
        """Takes the factors as they were cut.

        Args:
            name: Of the entry.
            weights: The weights that hold the factors.
            layers: The Keras layers that multiply by them.
            inputs: What goes into the first of them on calibration data.
            source: The layer whose channels these are, if it can make them larger; or None.
            scheme: Of the integers.
            granularity: Of the scales of kernels.
        """
        self._name, self._weights, self._layers = name, weights, layers
        self._inputs, self._source = inputs, source
        self._scheme, self._granularity = scheme, granularity
        # Kernels of convolutions have the axes of their window first.
        self._axis = -2 if hasattr(layers[1], "kernel_size") else 0
        first, second = (weight.numpy().astype(np.float64) for weight in weights)
        second = np.moveaxis(second, self._axis, 0)
        self._second_shape = second.shape
        self._rank = len(second)
        self._cut = first.reshape(-1, self._rank), second.reshape(self._rank, -1)
        self.mean_by_layer: dict[int, Array] = {}
        self._expected = self._outputs(layers[0](inputs))

    def choose(self, generator: np.random.Generator) -> LayerGauge:
        """Sets the factors to the best pair that is found, and scales the source to suit them."""

        def tried(
            gauge: str,
            pair: tuple[Array, Array],
            scales: Array | None = None,
            mean: Array | None = None,
        ) -> _Trial:
            snr = self._snr(pair, self._scaled(scales), mean)
            return _Trial(snr, gauge, pair, scales, mean)

        def better(*trials: _Trial) -> _Trial:
            return max(trials, key=lambda trial: trial.snr)

        cut = chosen = tried(AS_CUT, self._cut)
        for gauge, pair in self._pairs(generator):
            chosen = better(chosen, tried(gauge, pair))
        if self._source is not None:
            gauge, (first, second) = f"{chosen.gauge}, equalized", chosen.pair
            for scales in free_scales(self._source, self._inputs, first):
                thin = first / np.resize(scales, len(first))[:, None]
                chosen = better(chosen, tried(gauge, (thin, second), scales))
        if chosen.scales is not None:
            scale(self._source, chosen.scales)
            self._inputs = self._scaled(chosen.scales)
        start = chosen
        chosen = better(start, tried(f"{start.gauge}, refined", self._refined(start.pair)))
        if self._can_be_centred:
            pair = self._refined(start.pair, centred=True)
            mean = self._latents(*pair).mean(axis=0)
            centred = tried(f"{start.gauge}, centred, refined", pair, mean=mean)
            if centred.snr >= chosen.snr + _LEAST_GAIN:
                chosen = centred
        self._assign(*chosen.pair)
        if chosen.mean is not None:
            self._bias.assign(self._bias.numpy() + self._effect(chosen.mean, chosen.pair[1]))
            self.mean_by_layer[id(self._layers[0])] = chosen.mean
        return LayerGauge(self._name, chosen.gauge, cut.snr, chosen.snr)

    def _pairs(self, generator: np.random.Generator) -> Iterator[tuple[str, tuple[Array, Array]]]:
        latents = self._latents(*self._cut)
        moment = latents.T @ latents / len(latents)
        bases = {"balanced": balanced(*self._cut), "whitened": whitened(*self._cut, moment)}
        for gauge, (first, second) in bases.items():
            rotation = random_rotation(self._rank, generator)
            yield gauge, (first, second)
            yield f"{gauge}, rotated", (first @ rotation, rotation.T @ second)

    def _refined(self, pair: tuple[Array, Array], *, centred: bool = False) -> tuple[Array, Array]:
        import tensorflow as tf

        latents = self._latents(*pair)
        if centred:
            latents = latents - latents.mean(axis=0)
        every = -(-len(latents) // _MOST_ROWS)
        # Of any window of a convolution, as if there were no padding.
        energy = len(pair[0]) * tf.reduce_mean(tf.square(tf.cast(self._inputs, tf.float32)))
        _, last = self._layers
        rows = self._scheme == "dynamic" and not hasattr(last, "kernel_size")
        of_kernels = kernel_granularity(last, self._scheme, self._granularity)
        steps = Steps(of_kernels, of_latents="row" if rows else "tensor")
        return refined(*pair, latents[::every], float(energy), steps)

    def _latents(self, *pair: Array) -> Array:
        self._assign(*pair)
        latents = np.asarray(self._layers[0](self._inputs), np.float64)
        return latents.reshape(-1, self._rank)

    def _scaled(self, scales: Array | None) -> Any:
        if scales is None:
            return self._inputs
        channels = np.resize(scales, self._inputs.shape[-1])
        return self._inputs * channels.astype(self._inputs.dtype.as_numpy_dtype)

    def _snr(self, pair: tuple[Array, Array], inputs: Any, mean: Array | None) -> float:
        self._assign(*pair)
        for layer in self._layers:
            round_kernels(layer, self._scheme, self._granularity)
        first, last = self._layers
        latent = first(round_inputs(first, inputs, self._scheme))
        effect: Array | float = 0.0
        if mean is not None:
            latent -= mean.astype(latent.dtype.as_numpy_dtype)
            effect = self._effect(mean, pair[1])
        outputs = self._outputs(round_inputs(last, latent, self._scheme))
        return snr_db(outputs + effect, self._expected)

    @property
    def _bias(self) -> Any:
        return self._layers[1].bias

    @property
    def _can_be_centred(self) -> bool:
        """Tells whether the bias of the second factor can make good for any mean of the latent."""
        _, last = self._layers
        if self._bias is None:
            return False
        window = math.prod(getattr(last, "kernel_size", ()))
        # Zeros that a convolution pads the latent with have no mean.
        padded = window > 1 and last.padding != "valid"
        size = window * math.prod(self._bias.shape)
        return not padded and math.prod(self._second_shape[1:]) == size

    def _effect(self, mean: Array, second: Array) -> Array:
        """Returns what a mean of the latent adds to all outputs."""
        effect: Array = (mean @ second).reshape(-1, *self._bias.shape).sum(axis=0)
        return effect

    def _outputs(self, latent: Any) -> Array:
        """Returns the outputs before the activation."""
        _, last = self._layers
        with replaced([(last, "activation", None)]):
            return np.asarray(last(latent), np.float64)

    def _assign(self, first: Array, second: Array) -> None:
        head, tail = self._weights
        head.assign(first.reshape(head.shape))
        tail.assign(np.moveaxis(second.reshape(self._second_shape), 0, self._axis))


def _junctions(
    compressed: Compressed, calibration: Calibration, scheme: Scheme, granularity: Granularity
) -> Iterator[_Junction]:
    """Yields the factors whose second one is given just what the first one makes."""
    meetings = list(_meetings(compressed))
    pairs = [layers for _, _, layers in meetings]
    inputs, before = _inputs_of(compressed.model, pairs, calibration), sources(compressed.model)
    for meeting, (first, _), given in zip(meetings, pairs, inputs, strict=True):
        if given is not None:
            yield _Junction(
                *meeting,
                inputs=given,
                source=before.get(id(first)),
                scheme=scheme,
                granularity=granularity,
            )


def _meetings(
    compressed: Compressed,
) -> Iterator[tuple[str, tuple[Any, Any], tuple[Any, Any]]]:
    """Yields names, weights and layers of factors that follow one another."""
    owners = {
        id(variable): layer
        for layer in linear_layers(compressed.model)
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


def _centred(compressed: Compressed, means: Mapping[int, Array]) -> Compressed:
    """Copies a model, with biases in some layers that take means off their outputs.

    Args:
        compressed: The model.
        means: By identity of the layer.
    """
    replacements = {}
    for path, layer in walk(compressed.model):
        if id(layer) in means:
            _, _, output = getattr(layer, "equation", "").partition("->")
            change = {"bias_axes": output[-1]} if output else {"use_bias": True}
            weights = [layer.kernel.numpy(), -means[id(layer)]]
            twin = rebuild(layer, input_shape(layer), weights, **change)
            replacements[path] = Replacement((twin,), {})
    return compressed.copy(replacements)


def _is_plain(layer: Any) -> bool:
    """Tells whether a layer multiplies the last axis of its input, or windows along it."""
    return (
        type(layer).__name__ in {"Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"}
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and getattr(layer, "groups", 1) == 1
    )


def _gives_latent(layer: Any) -> bool:
    """Tells whether a layer gives the plain product, the columns of its kernel as the last axis."""
    operands, _, output = getattr(layer, "equation", "r->r").partition("->")
    linear = getattr(layer.activation, "__name__", "linear") == "linear"
    return layer.bias is None and linear and output.endswith(operands[-1])


def _inputs_of(model: Any, pairs: Sequence[tuple[Any, Any]], calibration: Calibration) -> list[Any]:
    """Returns what goes into the first layer of each pair.

    It is None where the results of that layer do not go to the other one. Of a layer that is called
    on several sizes, only the inputs of the first size are returned.
    """
    import tensorflow as tf

    layers = {id(layer): layer for pair in pairs for layer in pair}.values()
    share = _MOST_BYTES // max(1, len(pairs))
    signature = Signature(model)
    given: list[list[Any]] = [[] for _ in pairs]
    for batch in calibration.batches():
        with called(layers) as calls:
            signature(**tensors_of(signature, batch))
        for parts, (first, last) in zip(given, pairs, strict=True):
            made = {id(result) for _, result in calls[id(first)]}
            if made != {id(inputs) for inputs, _ in calls[id(last)]}:
                continue
            if sum(int(tf.size(part)) * part.dtype.size for part in parts) < share:
                size = calls[id(first)][0][0].shape[1:]
                parts.extend(part for part, _ in calls[id(first)] if part.shape[1:] == size)
    return [tf.concat(parts, axis=0) if parts else None for parts in given]
