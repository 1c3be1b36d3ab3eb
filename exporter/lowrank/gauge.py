"""The gauge: which of the many pairs of factors of one product is kept, for integers.

A factorized layer is ``y = (x K1) K2 + b``. For any invertible R, ``(x K1 R) (R^-1 K2)`` is the
same in float, but not in 8 bits, where each tensor has one step for all of its numbers: the nearer
its columns are to one size, the less is lost. The matrix R is chosen layer by layer, by what the
layer's outputs lose in simulated integers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.formats.base import Granularity, Signature
from exporter.lowrank.engine import Compressed, Factors
from exporter.lowrank.moments import Array
from exporter.lowrank.simulation import (
    Scheme,
    Simulation,
    linear_layers,
    round_inputs,
    round_kernels,
)
from exporter.lowrank.statistics import Calibration, tensors_of
from exporter.lowrank.taps import replaced
from exporter.metrics import snr_db

GAUGE_SAMPLES = 500
"""Calibration samples that a gauge is chosen on."""

AS_CUT = "as cut"

_ROTATIONS = 8
"""Random rotations that are tried of each basis."""

_RIDGE = 1e-4
"""Part of the mean variance of a latent that is added to each direction, for data may miss some."""

_MOST_BYTES = 2**29
"""Of a layer's inputs that are held at once."""


@dataclass(frozen=True)
class LayerGauge:
    """The gauge of one kernel's factors.

    Attributes:
        name: Of the kernel in the plan.
        gauge: ``"as cut"``; ``"balanced"``, where both factors have the singular values of their
            product to the power of a half; ``"whitened"``, likewise of the product as the data see
            it; or one of these two and ``", rotated"``.
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
) -> Gauged:
    """Chooses the gauge of each layer that became two matrices; the others stay as they are.

    Args:
        compressed: The model; it is not changed.
        calibration: Inputs, of which the first ``GAUGE_SAMPLES`` are looked at.
        scheme: How the model is to be quantized.
        granularity: Whether kernels will have one scale, or one an output channel.
        seed: Of the rotations.

    Returns:
        A copy. Where its outputs would lose more in simulated integers than before, its factors
        are those that were cut.
    """
    calibration = calibration.head(GAUGE_SAMPLES)
    simulation = Simulation(compressed.model, calibration, scheme, granularity)
    before = simulation.snr(compressed.model)
    copy = compressed.copy()
    layers = []
    for junction in _junctions(copy, calibration):
        generator = np.random.default_rng(seed)
        layers.append(junction.choose(scheme, granularity, generator))
    after = simulation.snr(copy.model)
    if not after >= before:
        copy, after = compressed.copy(), before
        layers = [LayerGauge(each.name, AS_CUT, *2 * [each.snr_before]) for each in layers]
    return Gauged(copy, GaugeReport(scheme, tuple(layers), before, after))


class _Junction:
    """Where two factors meet, with nothing but a latent in between."""

    def __init__(self, name: str, factors: Factors, layers: tuple[Any, Any], inputs: Any) -> None:
        """Takes the factors as they were cut.

        Args:
            name: Of the kernel.
            factors: A plain pair.
            layers: The Keras layers that multiply by them.
            inputs: What goes into the first of them on calibration data.
        """
        self._name, self._factors, self._layers, self._inputs = name, factors, layers, inputs
        self._cut = [
            weight.numpy().astype(np.float64).reshape(shape)
            for weight, shape in zip(factors.weights, factors.matrices, strict=True)
        ]
        self._latent = layers[0](inputs)
        self._expected = self._outputs(self._latent)

    def choose(
        self, scheme: Scheme, granularity: Granularity, generator: np.random.Generator
    ) -> LayerGauge:
        """Sets the factors to the best pair that is found."""
        best, before = AS_CUT, self._snr(scheme, granularity, *self._cut)
        chosen, after = self._cut, before
        for gauge, pair in self._pairs(generator):
            snr = self._snr(scheme, granularity, *pair)
            if snr > after:
                best, chosen, after = gauge, pair, snr
        self._assign(*chosen)
        return LayerGauge(self._name, best, before, after)

    def _pairs(self, generator: np.random.Generator) -> Iterator[tuple[str, list[Array]]]:
        bases = {"balanced": balanced(*self._cut), "whitened": self._whitened()}
        rotations = [random_rotation(self._factors.rank, generator) for _ in range(_ROTATIONS)]
        for gauge, (first, second) in bases.items():
            yield gauge, [first, second]
            for rotation in rotations:
                yield f"{gauge}, rotated", [first @ rotation, rotation.T @ second]

    def _whitened(self) -> tuple[Array, Array]:
        rank = self._factors.rank
        rows = np.asarray(self._latent, np.float64).reshape(-1, rank)
        first, second = self._cut
        return whitened(first, second, rows.T @ rows / len(rows))

    def _snr(self, scheme: Scheme, granularity: Granularity, first: Array, second: Array) -> float:
        self._assign(first, second)
        for layer in self._layers:
            round_kernels(layer, scheme, granularity)
        latent = self._layers[0](round_inputs(self._layers[0], self._inputs, scheme))
        outputs = self._outputs(round_inputs(self._layers[1], latent, scheme))
        return snr_db(outputs, self._expected)

    def _outputs(self, latent: Any) -> Array:
        """Returns the outputs before the activation."""
        _, last = self._layers
        with replaced([(last, "activation", None)]):
            return np.asarray(last(latent), np.float64)

    def _assign(self, *matrices: Array) -> None:
        for weight, matrix in zip(self._factors.weights, matrices, strict=True):
            weight.assign(matrix.reshape(weight.shape))


def _junctions(compressed: Compressed, calibration: Calibration) -> Iterator[_Junction]:
    """Yields the pairs whose second factor is given just what the first one makes."""
    owners = {
        id(variable): layer
        for layer in linear_layers(compressed.model)
        for variable in layer.weights
    }
    for name, factors in compressed.factors.items():
        pair = [owners[id(weight)] for weight in factors.weights if id(weight) in owners]
        if not factors.is_plain_pair or len(pair) != 2 or not all(map(_is_plain, pair)):
            continue
        first, last = pair
        if first.bias is not None or not _is_linear(first):
            continue
        inputs = _inputs_of(compressed.model, first, last, calibration)
        if inputs is not None:
            yield _Junction(name, factors, (first, last), inputs)


def _is_plain(layer: Any) -> bool:
    """Tells whether a layer multiplies the last axis of its input, or windows along it."""
    channels_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return type(layer).__name__ in {"Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"} and (
        channels_last
    )


def _is_linear(layer: Any) -> bool:
    return getattr(layer.activation, "__name__", "linear") == "linear"


def _inputs_of(model: Any, first: Any, last: Any, calibration: Calibration) -> Any:
    """Returns what goes into the first layer, or None if its results go elsewhere than the last."""
    import tensorflow as tf

    given: list[Any] = []
    made: dict[int, Any] = {}
    passed_on: list[int] = []
    first_call, last_call = first.call, last.call

    def note_first(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(inputs)
        result = first_call(inputs, *args, **kwargs)
        made[id(result)] = result
        return result

    def note_last(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        passed_on.append(id(inputs))
        return last_call(inputs, *args, **kwargs)

    signature = Signature(model)
    with replaced([(first, "call", note_first), (last, "call", note_last)]):
        for batch in calibration.batches():
            signature(**tensors_of(signature, batch))
            if sum(int(tf.size(part)) * part.dtype.size for part in given) > _MOST_BYTES:
                break
    if not given or sorted(made) != sorted(passed_on):
        return None
    return tf.concat(given, axis=0)


def balanced(first: Array, second: Array) -> tuple[Array, Array]:
    """Returns factors of the same product that share its singular values, half and half.

    Args:
        first: m x r, where r is at most m and n.
        second: r x n.
    """
    left, upper = np.linalg.qr(first)
    right, lower = np.linalg.qr(second.T)
    u, s, vt = np.linalg.svd(upper @ lower.T)
    half = np.sqrt(s)
    return left @ (u * half), half[:, None] * (vt @ right.T)


def whitened(first: Array, second: Array, moment: Array) -> tuple[Array, Array]:
    """Returns factors of the same product that are balanced for latents of a second moment.

    With ``moment = G Gt`` and ``Gt K2 = U S Vt``, they are ``K1 G^-t U S^1/2`` and ``S^1/2 Vt``:
    each latent has the variance S, and the second factor the singular values S^1/2.

    Args:
        first: m x r, where r is at most n.
        second: r x n.
        moment: r x r, of ``x first``.
    """
    values, vectors = np.linalg.eigh(moment)
    ridge = _RIDGE * max(float(np.mean(values)), 1e-30)
    scale = np.sqrt(np.maximum(values, 0.0) + ridge)
    u, s, vt = np.linalg.svd((vectors * scale).T @ second, full_matrices=False)
    half = np.sqrt(s)
    return first @ (vectors / scale) @ (u * half), half[:, None] * vt


def random_rotation(size: int, generator: np.random.Generator) -> Array:
    """Draws an orthogonal matrix, which spreads each axis evenly over all where one is known.

    Where there is a Hadamard matrix it is that one with random signs, and otherwise one of any.
    """
    hadamard = hadamard_matrix(size)
    if hadamard is None:
        rotation, upper = np.linalg.qr(generator.standard_normal((size, size)))
        return np.asarray(rotation * np.sign(np.diag(upper)))
    signs = generator.choice([-1.0, 1.0], size)
    return np.asarray(signs[:, None] * hadamard / math.sqrt(size))


def hadamard_matrix(size: int) -> Array | None:
    """Returns a matrix of 1 and -1 whose rows are orthogonal; None if none is known here.

    Sylvester doubles a matrix; Paley makes one of size q + 1 for each prime q = 4k - 1.
    """
    if size in {1, 2}:
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:size, :size]
    if size % 4:
        return None
    prime = size - 1
    if all(prime % divisor for divisor in range(2, math.isqrt(prime) + 1)):
        squares = {x * x % prime for x in range(1, prime)}
        character = np.array([0.0] + [1.0 if x in squares else -1.0 for x in range(1, prime)])
        index = np.arange(prime)
        skew = np.zeros((size, size))
        skew[0, 1:], skew[1:, 0] = 1.0, -1.0
        skew[1:, 1:] = character[(index[:, None] - index) % prime]
        return np.asarray(skew + np.eye(size))
    half = hadamard_matrix(size // 2)
    return None if half is None else np.block([[half, half], [half, -half]])
