"""Chooses the factor pair with the least int8 error among pairs with the same product."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from exporter.data.metrics import snr_db
from exporter.graph.hooks import replaced
from exporter.graph.types import Layer, Tensor, Variable
from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.coordinates import Steps, balanced, random_rotation, refined, whitened
from exporter.quantization.equalization import free_scales, scale
from exporter.quantization.scheme import IntegerScheme
from exporter.quantization.simulation import kernel_format, round_inputs, round_kernels

AS_CUT = "as cut"

Consecutive = tuple[str, tuple[Variable, Variable], tuple[Layer, Layer]]
"""The name of a factor pair in the report, its two weights, and the layers that hold them."""

_LEAST_GAIN = 0.5
"""Decibels that removing a mean must gain, because the new bias makes the artifact larger."""

_MOST_ROWS = 4096
"""Most rows of latents for which noise is predicted."""


@dataclass(frozen=True)
class LayerGauge:
    """The gauge of one kernel's factors.

    Attributes:
        name: The kernel in the plan; with three factors, the layer of the first factor.
        gauge: ``"as cut"``; ``"balanced"``, with the square roots of the product's singular values
            in both factors; or ``"whitened"``, the same for whitened latents. ``", rotated"`` may
            follow the last two, and any of them ``", equalized"`` (the layer before took over
            scales of channels), ``", centred"`` (a bias removes the mean of the latent) and
            ``", refined"`` (a descent lowered the predicted noise).
        snr_before: Signal to noise ratio of the layer's outputs in simulated integers, with the
            factors as cut, in decibels.
        snr_after: The ratio with the chosen factors.
    """

    name: str
    gauge: str
    snr_before: float
    snr_after: float


class _PairTrial(NamedTuple):
    """A pair of factors that was tried, with the scales of its inputs and the mean it removes."""

    snr: float
    gauge: str
    pair: tuple[Floats, Floats]
    scales: Floats | None
    mean: Floats | None


class FactorPair:
    """Two factors with only a latent between them.

    Attributes:
        layers: The Keras layers that multiply by the factors.
        mean: The mean of the latent that a new bias of the first layer has to subtract, or None.
            The bias of the second layer makes up for it already.
    """

    def __init__(
        self, found: Consecutive, inputs: Tensor, source: Layer | None, scheme: IntegerScheme
    ) -> None:
        """Takes the factors as they were cut.

        Args:
            found: The name, the weights and the layers.
            inputs: Inputs of the first layer on calibration data.
            source: The layer that can scale the channels of the inputs, or None.
            scheme: The integer scheme.
        """
        self._name, weights, layers = found
        self._weights, self.layers = weights, layers
        self._inputs, self._source, self._scheme = inputs, source, scheme
        # Kernels of convolutions have the axes of their window first.
        self._axis = -2 if hasattr(layers[1], "kernel_size") else 0
        first, second = (weight.numpy().astype(np.float64) for weight in weights)
        second = np.moveaxis(second, self._axis, 0)
        self._second_shape = second.shape
        self._rank = len(second)
        self._cut = first.reshape(-1, self._rank), second.reshape(self._rank, -1)
        self.mean: Floats | None = None
        self._expected = self._outputs(layers[0](inputs))

    def choose(self, generator: np.random.Generator) -> LayerGauge:
        """Sets the factors to the best pair, and scales the source accordingly."""

        def tried(
            gauge: str,
            pair: tuple[Floats, Floats],
            scales: Floats | None = None,
            mean: Floats | None = None,
        ) -> _PairTrial:
            snr = self._snr(pair, self._scaled(scales), mean)
            return _PairTrial(snr, gauge, pair, scales, mean)

        def better(*trials: _PairTrial) -> _PairTrial:
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
        start, latents = chosen, self._latents(*chosen.pair)
        pair = self._refined(start.pair, latents)
        chosen = better(start, tried(f"{start.gauge}, refined", pair))
        if self._can_be_centred:
            pair = self._refined(start.pair, latents - latents.mean(axis=0))
            mean = self._latents(*pair).mean(axis=0)
            centred = tried(f"{start.gauge}, centred, refined", pair, mean=mean)
            if centred.snr >= chosen.snr + _LEAST_GAIN:
                chosen = centred
        self._assign(*chosen.pair)
        if chosen.mean is not None:
            self._bias.assign(self._bias.numpy() + self._effect(chosen.mean, chosen.pair[1]))
        self.mean = chosen.mean
        return LayerGauge(self._name, chosen.gauge, cut.snr, chosen.snr)

    def _pairs(self, generator: np.random.Generator) -> Iterator[tuple[str, tuple[Floats, Floats]]]:
        latents = self._latents(*self._cut)
        moment = latents.T @ latents / len(latents)
        bases = {"balanced": balanced(*self._cut), "whitened": whitened(*self._cut, moment)}
        for gauge, (first, second) in bases.items():
            rotation = random_rotation(self._rank, generator)
            yield gauge, (first, second)
            yield f"{gauge}, rotated", (first @ rotation, rotation.T @ second)

    def _refined(self, pair: tuple[Floats, Floats], latents: Floats) -> tuple[Floats, Floats]:
        """Returns a pair with less predicted noise, given its latents, rows x r."""
        import tensorflow as tf

        every = -(-len(latents) // _MOST_ROWS)
        # The mean over windows of a convolution, as if there were no padding.
        energy = len(pair[0]) * tf.reduce_mean(tf.square(tf.cast(self._inputs, tf.float32)))
        _, last = self.layers
        scheme, whole = self._scheme, hasattr(last, "kernel_size")
        rows = scheme.activations == "dynamic" and scheme.dynamic_range == "row" and not whole
        kernels = kernel_format(last, scheme)
        latents_share: Literal["tensor", "row"] = "row" if rows else "tensor"
        steps = Steps(kernels, latents_share, scheme.activation_bits)
        return refined(*pair, latents[::every], float(energy), steps)

    def _latents(self, *pair: Floats) -> Floats:
        self._assign(*pair)
        latents = np.asarray(self.layers[0](self._inputs), np.float64)
        return latents.reshape(-1, self._rank)

    def _scaled(self, scales: Floats | None) -> Tensor:
        if scales is None:
            return self._inputs
        channels = np.resize(scales, self._inputs.shape[-1])
        return self._inputs * channels.astype(self._inputs.dtype.as_numpy_dtype)

    def _snr(self, pair: tuple[Floats, Floats], inputs: Tensor, mean: Floats | None) -> float:
        self._assign(*pair)
        for layer in self.layers:
            round_kernels(layer, self._scheme)
        first, last = self.layers
        latent = first(round_inputs(first, inputs, self._scheme))
        effect: Floats | float = 0.0
        if mean is not None:
            latent -= mean.astype(latent.dtype.as_numpy_dtype)
            effect = self._effect(mean, pair[1])
        outputs = self._outputs(round_inputs(last, latent, self._scheme))
        return snr_db(outputs + effect, self._expected)

    @property
    def _bias(self) -> Variable:
        return self.layers[1].bias

    @property
    def _can_be_centred(self) -> bool:
        """Whether the bias of the second layer can make up for any mean of the latent."""
        _, last = self.layers
        if self._bias is None:
            return False
        window = math.prod(getattr(last, "kernel_size", ()))
        # The zeros that a convolution pads the latent with must not be shifted.
        padded = window > 1 and last.padding != "valid"
        size = window * math.prod(self._bias.shape)
        return not padded and math.prod(self._second_shape[1:]) == size

    def _effect(self, mean: Floats, second: Floats) -> Floats:
        """Returns the effect of a mean of the latent on all outputs."""
        effect: Floats = (mean @ second).reshape(-1, *self._bias.shape).sum(axis=0)
        return effect

    def _outputs(self, latent: Tensor) -> Floats:
        """Returns the outputs before the activation."""
        _, last = self.layers
        with replaced([(last, "activation", None)]):
            return np.asarray(last(latent), np.float64)

    def _assign(self, first: Floats, second: Floats) -> None:
        head, tail = self._weights
        head.assign(first.reshape(head.shape))
        tail.assign(np.moveaxis(second.reshape(self._second_shape), 0, self._axis))
