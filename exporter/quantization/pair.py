"""Chooses the factor pair with the least int8 error among pairs with the same product."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from exporter.data.metrics import decibels
from exporter.graph.hooks import replaced
from exporter.graph.types import Layer, Tensor, Variable
from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.coordinates import Steps, balanced, random_rotation, refined, whitened
from exporter.quantization.equalization import free_scales, scale
from exporter.quantization.scheme import IntegerScheme
from exporter.quantization.simulation import (
    is_rounded,
    kernel_format,
    range_axes,
    round_inputs,
    round_kernels,
)

AS_CUT = "as cut"

Consecutive = tuple[str, tuple[Variable, Variable], tuple[Layer, Layer]]
"""The name of a factor pair in the report, its two weights, and the layers that hold them."""

_LEAST_GAIN = 0.5
"""Decibels that removing a mean must gain, because the new bias makes the artifact larger."""

_TINY = 1e-30
"""Keeps outputs of zeros from being divided by."""

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

    def __init__(self, found: Consecutive, inputs: Tensor, source: Layer | None) -> None:
        """Takes what is the same at every choice.

        Args:
            found: The name, the weights and the layers.
            inputs: Inputs of the first layer on calibration data.
            source: The layer that can scale the channels of the inputs, or None.
        """
        self._name, self._weights, self.layers = found
        self._source, self._inputs, self._channels = source, inputs, inputs.shape[-1]
        array = inputs.numpy().astype(np.float32, copy=False).reshape(-1, self._channels)
        self._largest = np.abs(array).max(axis=0).astype(np.float64)
        self._energies = np.einsum("nc,nc->c", array, array, dtype=np.float64) / len(array)
        # Kernels of convolutions have the axes of their window first.
        self._axis = -2 if hasattr(self.layers[1], "kernel_size") else 0
        self._cut: tuple[Floats, Floats] = (np.zeros((0, 0)), np.zeros((0, 0)))
        self._known: dict[Any, Any] = {}

    def choose(self, generator: np.random.Generator, scheme: IntegerScheme) -> LayerGauge:
        """Sets the factors to the best pair, and scales the source accordingly."""
        self.mean = None
        if not any(is_rounded(layer, scheme) for layer in self.layers):
            return LayerGauge(self._name, AS_CUT, math.inf, math.inf)
        self._start(scheme)
        cut = chosen = self._tried(AS_CUT, self._cut)
        for gauge, pair in self._pairs(generator):
            chosen = _better(chosen, self._tried(gauge, pair))
        if self._source is not None:
            gauge, (first, second) = f"{chosen.gauge}, equalized", chosen.pair
            for scales in free_scales(self._source, self._largest, first):
                thin = first / np.resize(scales, len(first))[:, None]
                chosen = _better(chosen, self._tried(gauge, (thin, second), scales))
        if chosen.scales is not None:
            scale(self._source, chosen.scales)
        chosen = self._once((chosen.gauge, "refined"), lambda: self._refined(chosen))
        self._assign(*chosen.pair)
        if chosen.mean is not None:
            self._bias.assign(self._bias.numpy() + self._effect(chosen.mean, chosen.pair[1]))
        self.mean = chosen.mean
        return LayerGauge(self._name, chosen.gauge, cut.snr, chosen.snr)

    def _start(self, scheme: IntegerScheme) -> None:
        """Reads the factors, and forgets what is known of others."""
        self._scheme = scheme
        first, second = (weight.numpy().astype(np.float64) for weight in self._weights)
        second = np.moveaxis(second, self._axis, 0)
        self._second_shape, self._rank = second.shape, len(second)
        cut = first.reshape(-1, self._rank), second.reshape(self._rank, -1)
        if not all(map(np.array_equal, self._cut, cut)):
            self._known.clear()
            self._cut = cut
            latents = self.layers[0](self._inputs)
            self._expected = self._outputs(latents)
            self._signal = _energy(self._expected)
            rows = latents.numpy().reshape(-1, self._rank).astype(np.float32, copy=False)
            self._mean = rows.mean(axis=0, dtype=np.float64)
            self._moment = np.asarray(rows.T @ rows, np.float64) / len(rows)
            self._latents = rows[:: -(-len(rows) // _MOST_ROWS)].astype(np.float64)
        self._unscaled = self._rounded(None)

    def _once(self, key: tuple[str, str], compute: Callable[[], Any]) -> Any:
        """Computes what depends neither on a rotation nor on another layer once for a scheme."""
        if "rotated" in key[0] or "equalized" in key[0]:
            return compute()
        place = (self._scheme, *key)
        if place not in self._known:
            self._known[place] = compute()
        return self._known[place]

    def _tried(
        self, gauge: str, pair: tuple[Floats, Floats], scales: Floats | None = None
    ) -> _PairTrial:
        trial = self._once((gauge, "tried"), lambda: self._trial(gauge, pair, scales))
        return cast("_PairTrial", trial)

    def _trial(
        self,
        gauge: str,
        pair: tuple[Floats, Floats],
        scales: Floats | None = None,
        mean: Floats | None = None,
    ) -> _PairTrial:
        return _PairTrial(self._snr(pair, scales, mean), gauge, pair, scales, mean)

    def _pairs(self, generator: np.random.Generator) -> Iterator[tuple[str, tuple[Floats, Floats]]]:
        def bases() -> dict[str, tuple[Floats, Floats]]:
            return {
                "balanced": balanced(*self._cut),
                "whitened": whitened(*self._cut, self._moment),
            }

        for gauge, (first, second) in self._once((AS_CUT, "bases"), bases).items():
            rotation = random_rotation(self._rank, generator)
            yield gauge, (first, second)
            yield f"{gauge}, rotated", (first @ rotation, rotation.T @ second)

    def _refined(self, start: _PairTrial) -> _PairTrial:
        """Returns the trial, or a better one with less predicted noise, which may be centred."""
        gauge, scales, change = start.gauge, start.scales, self._change(start.pair, start.scales)
        pair = self._descended(start, self._latents @ change)
        chosen = _better(start, self._trial(f"{gauge}, refined", pair, scales))
        if self._can_be_centred:
            pair = self._descended(start, (self._latents - self._mean) @ change)
            mean = self._mean @ self._change(pair, scales)
            centred = self._trial(f"{gauge}, centred, refined", pair, scales, mean)
            if centred.snr >= chosen.snr + _LEAST_GAIN:
                chosen = centred
        return chosen

    def _change(self, pair: tuple[Floats, Floats], scales: Floats | None) -> Floats:
        """Returns R, by which the latents of the cut become those of a pair."""
        cut, first = self._cut[0], pair[0]
        if scales is not None:
            first = first * np.resize(scales, len(first))[:, None]
        return np.asarray(np.linalg.lstsq(cut, first, rcond=None)[0])

    def _descended(self, start: _PairTrial, latents: Floats) -> tuple[Floats, Floats]:
        """Returns a pair with less predicted noise, given latents of the start, rows x r."""
        # The mean over windows of a convolution, as if there were no padding.
        energy = len(start.pair[0]) * np.mean(self._energies * self._by_channel(start.scales) ** 2)
        _, last = self.layers
        axes = range_axes(last, latents, self._scheme)
        latents_share: Literal["tensor", "row"] = "row" if axes == (-1,) else "tensor"
        kernels = kernel_format(last, self._scheme)
        steps = Steps(kernels, latents_share, self._scheme.activation_bits)
        return refined(*start.pair, latents, float(energy), steps)

    def _by_channel(self, scales: Floats | None) -> Floats:
        return np.ones(self._channels) if scales is None else np.resize(scales, self._channels)

    def _rounded(self, scales: Floats | None) -> Tensor:
        """Returns the scaled inputs as the first layer takes them in integers."""
        if scales is None:
            return round_inputs(self.layers[0], self._inputs, self._scheme)
        factors = self._by_channel(scales).astype(self._inputs.dtype.as_numpy_dtype)
        return round_inputs(self.layers[0], self._inputs * factors, self._scheme)

    def _snr(
        self, pair: tuple[Floats, Floats], scales: Floats | None, mean: Floats | None
    ) -> float:
        self._assign(*pair)
        for layer in self.layers:
            round_kernels(layer, self._scheme)
        first, last = self.layers
        latent = first(self._unscaled if scales is None else self._rounded(scales))
        expected = self._expected
        if mean is not None:
            latent -= mean.astype(latent.dtype.as_numpy_dtype)
            expected -= self._effect(mean, pair[1]).astype(np.float32)
        noise = _energy(self._outputs(round_inputs(last, latent, self._scheme)) - expected)
        return -decibels(noise / max(self._signal, _TINY))

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

    def _outputs(self, latent: Tensor) -> Tensor:
        """Returns the outputs before the activation."""
        import tensorflow as tf

        _, last = self.layers
        with replaced([(last, "activation", None)]):
            return tf.cast(last(latent), tf.float32)

    def _assign(self, first: Floats, second: Floats) -> None:
        head, tail = self._weights
        head.assign(first.reshape(head.shape))
        tail.assign(np.moveaxis(second.reshape(self._second_shape), 0, self._axis))


def _better(*trials: _PairTrial) -> _PairTrial:
    return max(trials, key=lambda trial: trial.snr)


def _energy(values: Tensor) -> float:
    """Returns the sum of squares."""
    import tensorflow as tf

    return 2 * float(tf.nn.l2_loss(values))
