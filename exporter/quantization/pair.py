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
    round_activations,
    round_inputs,
    round_kernels,
)

AS_CUT = "as cut"

Consecutive = tuple[str, tuple[Variable, Variable], tuple[Layer, Layer]]
"""The name of a factor pair in the report, its two weights, and the layers that hold them."""

_LEAST_GAIN = 0.5
"""Decibels that removing a mean must gain, because the new bias makes the artifact larger."""

_MOST_ROWS = 4096
"""Most rows of latents for which noise is predicted."""

_PART_SIZE = 2**20
"""Elements of the inputs that are computed with at once: parts stay in the processor's cache."""


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
        self._source, self._channels = source, inputs.shape[-1]
        rows = math.ceil(len(inputs) * _PART_SIZE / math.prod(inputs.shape))
        self._parts = [inputs[start : start + rows] for start in range(0, len(inputs), rows)]
        self._dtype = inputs.dtype.as_numpy_dtype
        arrays = [part.numpy().reshape(-1, self._channels) for part in self._parts]
        self._lowest = np.min([array.min(axis=0) for array in arrays], axis=0)
        self._highest = np.max([array.max(axis=0) for array in arrays], axis=0)
        squares = [np.einsum("nc,nc->c", *2 * [array.astype(np.float64)]) for array in arrays]
        self._energies = np.sum(squares, axis=0) / sum(map(len, arrays))
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
            largest = np.maximum(np.abs(self._highest), np.abs(self._lowest)).astype(np.float64)
            for scales in free_scales(self._source, largest, first):
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
            latents = [self.layers[0](part) for part in self._parts]
            self._expected = list(map(self._outputs, latents))
            self._signal = sum(map(_energy, self._expected))
            rows = np.concatenate([part.numpy().reshape(-1, self._rank) for part in latents])
            rows = rows.astype(np.float32, copy=False)
            every = -(-len(rows) // _MOST_ROWS)
            self._mean = rows.mean(axis=0, dtype=np.float64)
            self._moment = np.asarray(rows.T @ rows, np.float64) / len(rows)
            self._latents = rows[::every].astype(np.float64)
        self._unscaled = list(self._rounded(None))

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
        return cast(
            "_PairTrial",
            self._once((gauge, "tried"), lambda: self._trial(gauge, pair, scales)),
        )

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

    def _scaled(self, scales: Floats | None) -> Iterator[Tensor]:
        factors = self._by_channel(scales).astype(self._dtype)
        yield from (part if scales is None else part * factors for part in self._parts)

    def _rounded(self, scales: Floats | None) -> Iterator[Tensor]:
        """Yields the scaled inputs as the first layer takes them in integers."""
        factors = self._by_channel(scales).astype(self._dtype)
        ends = (self._lowest * factors).min(), (self._highest * factors).max()
        for part in self._scaled(scales):
            yield self._in_integers(self.layers[0], part, *ends)

    def _in_integers(self, layer: Layer, values: Tensor, low: float, high: float) -> Tensor:
        """Rounds inputs of a layer; the ends are those of all parts."""
        if range_axes(layer, values, self._scheme) is None and is_rounded(layer, self._scheme):
            return round_activations(values, low, high, self._scheme.activation_bits)
        return round_inputs(layer, values, self._scheme)

    def _snr(
        self, pair: tuple[Floats, Floats], scales: Floats | None, mean: Floats | None
    ) -> float:
        import tensorflow as tf

        self._assign(*pair)
        for layer in self.layers:
            round_kernels(layer, self._scheme)
        first, last = self.layers
        inputs = self._unscaled if scales is None else self._rounded(scales)
        latents = [first(part) for part in inputs]
        effect: Floats | float = 0.0
        if mean is not None:
            latents = [part - mean.astype(self._dtype) for part in latents]
            effect = self._effect(mean, pair[1])
        low = min(float(tf.reduce_min(part)) for part in latents)
        high = max(float(tf.reduce_max(part)) for part in latents)
        noise = sum(
            _energy(self._outputs(self._in_integers(last, part, low, high)) - (wanted - effect))
            for part, wanted in zip(latents, self._expected, strict=True)
        )
        return -decibels(noise / self._signal)

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

    return float(tf.reduce_sum(tf.square(values)))
