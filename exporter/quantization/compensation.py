"""Rounds kernels so that the errors of their weights make up for one another.

The nearest steps are best for the weights, but not for the outputs. Here the rows of a kernel, one
for each input, are rounded one after another, and the rows that are left are moved to where they
make up best for the error on calibration data: the optimal brain surgeon of Hassibi and Stork
(1993), in the order and with the triangle of GPTQ (Frantar et al., 2023). Steps are chosen as well,
for a narrower range clips few weights and rounds all others more finely.

Quantizers leave a kernel as it is that lies on the steps of its own range. So the rounded kernels
are handed on in float, and every converter stores them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.graph.hooks import called
from exporter.graph.layers import is_channels_last, kind_of
from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor
from exporter.lowrank.calibration import HELD_OUT_EVERY, Calibration
from exporter.lowrank.linalg.moments import Accumulator, Floats
from exporter.quantization.granularity import Compensation
from exporter.quantization.grid import Grid
from exporter.quantization.scheme import IntegerScheme, KernelFormat
from exporter.quantization.simulation import (
    Simulation,
    is_rounded,
    kernel_format,
    linear_layers,
    restored,
)

DAMPING = 0.01
"""Ridge of the inputs' covariance, as a part of their mean variance: data may miss directions."""

SHARES = tuple(np.linspace(1.0, 0.5, 11))
"""Parts of the range of the weights that steps are tried for."""

MOST_MACS, LEAST_ROWS_PER_INPUT = 3e10, 4
"""Multiply-accumulates that the covariance of a kernel's inputs may take, and rows that are taken
for each input nonetheless. Rows are of all samples, for those of one image are alike.
"""

ENOUGH_DB, MOST_LOST_DB = 24.0, 3.0
"""Where layers differ in their bits, the SNR that suffices, for it costs tenths of a point at most;
or what may be lost of a lower one, that of 8 bits in all layers."""

DIVIDING_SAMPLES = 128
"""Samples that bits are divided by: each layer is tried."""

_BLOCK = 128
"""Rows of a kernel that are rounded before those that follow the block are moved at once."""


class Inputs(NamedTuple):
    """The mean of a kernel's inputs, m, and their covariance, or second moment, m x m.

    It is the covariance where a bias can correct the mean of the outputs.
    """

    mean: Floats
    covariance: Floats


class Compensator:
    """Rounds the kernels of one network, on the inputs that calibration data give them."""

    def __init__(self, network: Network, calibration: Calibration) -> None:
        """Splits the data; nothing is computed before it is needed.

        Args:
            network: The model in float; it is not changed.
            calibration: Calibration data; the last quarter judges, if there are so many batches.
        """
        self._network = network
        fitted = calibration.batch_count * (HELD_OUT_EVERY - 1) // HELD_OUT_EVERY
        count = fitted * calibration.batch_size
        parts = (slice(count), slice(count, None)) if fitted else 2 * (slice(None),)
        self._fitted, self._held_out = (
            replace(calibration, inputs={name: a[part] for name, a in calibration.inputs.items()})
            for part in parts
        )
        self._rounded: dict[tuple[int, KernelFormat], list[NDArray[np.float32]]] = {}

    @cached_property
    def _simulation(self) -> Simulation:
        return Simulation(self._network, self._held_out)

    @cached_property
    def _inputs(self) -> dict[int, Inputs]:
        return _observe(self._network, self._fitted)

    def round(self, scheme: IntegerScheme) -> tuple[Network, Compensation]:
        """Returns a copy with rounded kernels, or the network where nearest steps lose less.

        Args:
            scheme: The integers of the quantized model, with their granularity.
        """
        network = self._network
        layers = [layer for layer in linear_layers(network) if is_rounded(layer, scheme)]
        layers = [layer for layer in layers if id(layer) in self._inputs]
        narrow: tuple[str, ...] = ()
        if scheme.mixed:
            scheme, narrow = self._divided(layers, scheme)
        before = self._simulation.snr(network, scheme)
        with restored(weight for layer in layers for weight in layer.weights):
            self._round(layers, scheme)
            after = self._simulation.snr(network, scheme)
            if not after > before and not narrow:
                return network, Compensation(0, before, before)
            return network.copy(), Compensation(len(layers), before, after, narrow)

    def _divided(
        self, layers: Sequence[Layer], scheme: IntegerScheme
    ) -> tuple[IntegerScheme, tuple[str, ...]]:
        """Chooses the layers that have few bits: those that add least noise for what they save.

        Returns:
            The scheme with all others in 8 bits, and the names of the chosen ones.
        """
        network = self._network
        simulation = Simulation(network, self._held_out.head(DIVIDING_SAMPLES))
        every = frozenset(layer.name for layer in linear_layers(network))

        def snr(names: Iterable[str]) -> float:
            chosen = replace(scheme, wide=every - set(names))
            with restored(weight for layer in layers for weight in layer.weights):
                self._round(layers, chosen)
                return simulation.snr(network, chosen)

        whole = snr(())
        least = min(ENOUGH_DB, whole - MOST_LOST_DB)
        candidates = [layer for layer in layers if kernel_format(layer, scheme).bits < 8]
        noise = {x.name: 10 ** (-snr([x.name]) / 10) - 10 ** (-whole / 10) for x in candidates}
        saved = {layer.name: prod(layer.kernel.shape) for layer in candidates}
        order = sorted(noise, key=lambda name: noise[name] / saved[name])
        # Noise adds up, but for chance.
        sums = np.cumsum([noise[name] for name in order]) + 10 ** (-whole / 10)
        count = int(np.sum(sums <= 10 ** (-least / 10)))
        while count and snr(order[:count]) < least:
            count -= 1
        narrow = [layer.name for layer in layers if layer.name in order[:count]]
        return replace(scheme, wide=every - set(narrow)), tuple(narrow)

    def _round(self, layers: Iterable[Layer], scheme: IntegerScheme) -> None:
        """Rounds the kernels of layers in place; their weights are those in float."""
        for layer in layers:
            kernel = kernel_format(layer, scheme)
            key = id(layer), kernel
            if key not in self._rounded:
                self._rounded[key] = _rounded(layer, self._inputs[id(layer)], kernel)
            for variable, value in zip(
                (layer.kernel, layer.bias), self._rounded[key], strict=False
            ):
                variable.assign(value)


def _rounded(layer: Layer, inputs: Inputs, kernel: KernelFormat) -> list[NDArray[np.float32]]:
    """Returns the rounded kernel of a layer, and a bias that makes up for the mean of the error."""
    weights = layer.kernel.numpy().astype(np.float64)
    matrix = weights.reshape(len(inputs.mean), -1)
    stored, read = compensated(matrix, inputs.covariance, kernel)
    found = [stored.reshape(weights.shape).astype(np.float32)]
    if _is_biased(layer):
        shift = inputs.mean @ (matrix - read)
        found.append(layer.bias.numpy() + shift.astype(np.float32))
    return found


def compensated(matrix: Floats, moment: Floats, kernel: KernelFormat) -> tuple[Floats, Floats]:
    """Rounds a matrix, row by row, so that its products have little error.

    Args:
        matrix: m x n; row i is multiplied by input i.
        moment: Second moment, or covariance, of the inputs, m x m.
        kernel: The integers.

    Returns:
        The matrix to be stored, whose range has the chosen steps, and the same as it is read: they
        differ where the ends of the range lie between two steps.
    """
    size = len(matrix)
    mean = np.trace(moment) / size
    moment = (moment / mean if mean > 0 else 0 * moment) + DAMPING * np.eye(size)
    grid, ends = _finest(matrix, np.diagonal(moment), kernel)
    order = np.argsort(-np.diagonal(moment), kind="stable")
    triangle = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    left, ends = matrix[order], ends[order]
    fixed = ~np.isnan(ends)
    stored, read = np.empty_like(left), np.empty_like(left)
    for start in range(0, size, _BLOCK):
        rows = slice(start, min(start + _BLOCK, size))
        errors = np.empty_like(left[rows])
        for row in range(rows.start, rows.stop):
            target = left[row : row + 1]
            stored[row] = np.where(fixed[row], ends[row], grid.rounded(target)[0])
            read[row] = grid.rounded(stored[row : row + 1])[0]
            error = (target[0] - read[row]) / triangle[row, row]
            errors[row - rows.start] = error
            left[row + 1 : rows.stop] -= np.outer(triangle[row, row + 1 : rows.stop], error)
        left[rows.stop :] -= triangle[rows, rows.stop :].T @ errors
    back = np.argsort(order)
    return stored[back], read[back]


def _finest(matrix: Floats, weights: Floats, kernel: KernelFormat) -> tuple[Grid, Floats]:
    """Chooses the steps of a matrix by the error of the nearest values, weighted by row.

    Returns:
        The steps, and the weights that keep them: the largest, and the least, are at the ends of
        the range; NaN where a weight is free.
    """
    shared = kernel.granularity == "tensor"
    axis = None if shared else 0
    low, high = (end(matrix, axis=axis, keepdims=True) for end in (np.min, np.max))
    chosen, least = Grid.between(low, high, kernel), np.full(low.shape, np.inf)
    for share in SHARES:
        grid = Grid.between(share * low, share * high, kernel)
        squares = weights[:, np.newaxis] * (grid.rounded(matrix) - matrix) ** 2
        error = squares.sum(axis=axis, keepdims=True)
        chosen = Grid(*(np.where(error < least, *pair) for pair in zip(grid, chosen, strict=True)))
        least = np.minimum(error, least)
    ends = np.full(matrix.shape, np.nan)

    def fix(values: Floats, end: Floats) -> None:
        """Puts the greatest of the values that share a range at an end."""
        greatest = values == values.max(axis=axis, keepdims=True)
        ends[greatest] = np.broadcast_to(end, ends.shape)[greatest]

    if kernel.symmetric:
        fix(abs(matrix), np.where(matrix < 0, chosen.low, chosen.high))
    else:
        fix(-matrix, chosen.low)
        fix(matrix, chosen.high)
    return chosen, ends


def _observe(network: Network, calibration: Calibration) -> dict[int, Inputs]:
    """Returns what the kernels are multiplied by, by the identity of the layer."""
    signature = network.signature
    layers = {id(layer): layer for layer in linear_layers(network) if _is_matrix(layer)}
    sums = {key: Accumulator() for key in layers}
    for batch in calibration.batches():
        with called(layers.values()) as calls:
            signature(**signature.tensors(batch))
        for key, pairs in calls.items():
            for inputs, result in pairs:
                rows = _rows(layers[key], inputs, prod(result.shape[1:-1]), len(calibration))
                sums[key].add(rows, rows)
    found = {}
    for key, each in sums.items():
        if each.count:
            moment = each.covariance if _is_biased(layers[key]) else each.about_zero
            found[key] = Inputs(each.mean[0], moment[0])
    # What is computed of infinite numbers is not finite either, however weights are rounded.
    return {key: each for key, each in found.items() if np.isfinite(each.covariance).all()}


def _is_matrix(layer: Layer) -> bool:
    """Tells whether a layer multiplies its last axis, or windows, by a matrix, to its last axis."""
    equation = str(getattr(layer, "equation", "a,ab->b"))
    operands, _, output = equation.replace(" ", "").rpartition("->")
    given, _, kernel = operands.partition(",")
    ordered = given.endswith(kernel[:-1]) and output.endswith(kernel[-1])
    plain = kind_of(layer).holds_factor and getattr(layer, "groups", 1) == 1
    return bool(plain and is_channels_last(layer) and ordered)


def _is_biased(layer: Layer) -> bool:
    return layer.bias is not None and prod(layer.bias.shape) == layer.kernel.shape[-1]


def _rows(layer: Layer, inputs: Tensor, positions: int, samples: int) -> NDArray[np.float32]:
    """Returns what the rows of a kernel are multiplied by at some positions, rows x 1 x m.

    Args:
        layer: The layer.
        inputs: What it is called with.
        positions: Number of places that the kernel is applied at in one sample.
        samples: Number of all samples.
    """
    import keras

    size = prod(layer.kernel.shape[:-1])
    skipped = positions * samples / max(LEAST_ROWS_PER_INPUT * size, MOST_MACS / size**2)
    inputs = keras.ops.cast(inputs, "float32")
    if hasattr(layer, "kernel_size"):
        every = max(1, int(skipped ** (1 / len(layer.kernel_size))))
        windows = np.eye(size, dtype=np.float32).reshape(*layer.kernel.shape[:-1], size)
        inputs = keras.ops.conv(
            inputs,
            windows,
            strides=[stride * every for stride in layer.strides],
            padding="same" if layer.padding == "causal" else layer.padding,
            dilation_rate=layer.dilation_rate,
        )
        return np.asarray(inputs).reshape(-1, 1, size)
    rows = np.asarray(inputs).reshape(-1, 1, size)
    return rows[:: max(1, int(skipped))] if positions > 1 else rows
