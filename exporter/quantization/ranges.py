"""Estimates the ranges of activations from calibration data.

An integer of b bits represents 2^b values between the ends of a range. A wide range has a coarse
step; a narrow one clips. Every range includes zero, so that zero has no error.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from exporter.data import Array
from exporter.errors import DataError, RecipeError
from exporter.graph.layers import Probabilities

BINS = 4096
"""Most bins of a histogram; more than half of them are used. TensorRT uses 2048."""

PERCENTILE = 99.99
"""Part of the values within the ``percentile`` range, in percent.

Wu et al. compare it with others ("Integer Quantization for Deep Learning Inference", 2020). ONNX
Runtime's 99.999 clips none of fewer than 100,000 values, which is common for small layers.
"""

_SHRINKS = 2.0 ** -(np.arange(96) / 16)
"""Candidates for an end of the ``mse`` range, as parts of the observed end, in steps of 4 %."""

_ENTROPY_CANDIDATES = 128

_EMPTY_BIN = 1e-4
"""Count of an empty bin, for the divergence to be finite; the value is ONNX Runtime's."""

_SPIKE = 10
"""Ratio to its neighbours from which on a bin is a spike, not part of a density."""

_FINEST = -1022
"""Exponent of the smallest normal float64."""


class Observer:
    """Observes the values of a tensor batch by batch, and estimates their range.

    It keeps the smallest and the largest value and a histogram. The edges of the bins are multiples
    of a power of two. When values do not fit, the power is doubled and neighbours are merged, which
    is exact: the order of batches makes no difference.
    """

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._total = 0
        self._exponent, self._first = _FINEST, 0
        self._counts = np.zeros(1, np.int64)

    def observe(self, values: Array) -> None:
        """Adds a batch of any shape; raises DataError if a value is infinite or NaN."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        wrong = flat.size - np.count_nonzero(np.isfinite(flat))
        if wrong:
            raise DataError(
                "A range can only be estimated from finite numbers. Received: infinity or NaN in "
                f"{wrong} of {flat.size} values. Check the calibration data and the model."
            )
        self._total += flat.size
        # Zero is represented without error by every range.
        flat = flat[flat != 0]
        if not flat.size:
            return
        self._low = min(self._low, float(flat.min()))
        self._high = max(self._high, float(flat.max()))
        self._widen()
        bins = np.floor(np.ldexp(flat, -self._exponent)).astype(np.int64) - self._first
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def range(self, method: str, bits: int = 8) -> tuple[float, float]:
        """Returns the ends of the range: the low one at most, the high one at least 0.

        Neither lies beyond the observed values and zero.

        Args:
            method: One of ``METHODS``.
            bits: Bits of the integers.

        Raises:
            RecipeError: If the method is unknown.
            DataError: If nothing was observed.
        """
        estimate = METHODS.get(method)
        if estimate is None:
            raise RecipeError(f"ranges must be one of {', '.join(METHODS)}. Received: {method!r}.")
        if not self._total:
            raise DataError("A range can only be estimated from data. Received: no values.")
        if self._low == self._high:
            return 0.0, 0.0
        ends = (math.ldexp(end, -self._exponent) for end in (self._low, self._high))
        histogram = Histogram(self._counts, self._first, self._total, *ends)
        low, high = (math.ldexp(end, self._exponent) for end in estimate(histogram, 2**bits))
        return max(low, self._low), min(high, self._high)

    def _widen(self) -> None:
        """Makes the bins as wide as the values observed so far need them."""
        largest = max(self._high, -self._low)
        # No smaller power of two suffices: BINS bins must reach beyond the largest value.
        exponent = max(self._exponent, math.frexp(largest)[1] - BINS.bit_length() + 1)
        while _bin(self._high, exponent) - _bin(self._low, exponent) >= BINS:
            exponent += 1
        first = _bin(self._low, exponent)
        counts = np.zeros(_bin(self._high, exponent) - first + 1, np.int64)
        former = self._first + np.arange(len(self._counts))
        np.add.at(counts, (former >> (exponent - self._exponent)) - first, self._counts)
        self._exponent, self._first, self._counts = exponent, first, counts


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def relevant(logits: Array, probabilities: Probabilities, bits: int = 8) -> Array:
    """Returns logits in a narrower range that have nearly the same probabilities.

    A logit beyond which a probability is nearer to 0 or 1 than a quarter of its step may as well be
    that one. Of a softmax, along the last axis, such are those far below the largest, and the
    largest itself far above all others, down to zero: others may be masked by a number far off.

    Args:
        logits: What a softmax (``"categorical"``) or a sigmoid (``"bernoulli"``) is computed of.
        probabilities: Which of them.
        bits: Bits of a probability.
    """
    reach = (bits + 2) * math.log(2)
    if probabilities == "bernoulli":
        return np.clip(logits, -reach, reach)
    if logits.shape[-1] == 1:
        return np.zeros_like(logits)
    ordered = np.partition(logits, -2, axis=-1)
    largest = np.minimum(ordered[..., -1:], np.maximum(ordered[..., -2:-1] + reach, 0))
    return np.clip(logits, largest - reach, largest)


@dataclass(frozen=True)
class Histogram:
    """Counts of the values other than zero; one bin is the unit of length.

    Attributes:
        counts: Counts by bin; zero is an edge.
        first: Lower edge of the first bin.
        total: Number of values, including zeros.
        low: The smallest value, or 0.
        high: The largest value, or 0.
    """

    counts: Array
    first: int
    total: int
    low: float
    high: float

    @cached_property
    def edges(self) -> Array:
        """Lower edges, and the upper one of the last bin."""
        return np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64)

    @cached_property
    def smooth_counts(self) -> Array:
        """Counts with the median of the neighbourhood in place of spikes.

        A value that many samples share exactly, such as that of an empty background, is no part of
        a density and would dominate the divergence. NVIDIA's pytorch-quantization treats the bin of
        zeros in the same way.
        """
        neighbours = np.lib.stride_tricks.sliding_window_view(np.pad(self.counts, 2), 5)
        medians = np.median(neighbours, axis=1)
        return np.where(self.counts > _SPIKE * (medians + 1), medians, self.counts)


def _minmax(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Returns the observed ends: clips nothing."""
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Clips as many of the smallest as of the largest values."""
    clipped = histogram.total * (1 - PERCENTILE / 100) / 2
    edges = histogram.edges
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    above = below[-1] - below
    positive = edges >= 0
    low = np.interp(clipped, below[edges <= 0], edges[edges <= 0])
    high = np.interp(clipped, above[positive][::-1], edges[positive][::-1])
    return float(low), float(high)


def _mse(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Minimizes the squared error of rounding and of clipping.

    The ends are searched in turn until neither moves. The error of clipping is convex in each end,
    the error of rounding (nearly the square of the width) in both, so this finds the minimum.
    """
    ends = [histogram.low, histogram.high]
    least = math.inf
    moved = True
    while moved:
        moved = False
        for end, extreme in enumerate((histogram.low, histogram.high)):
            candidates = np.tile(np.array(ends), (len(_SHRINKS), 1))
            candidates[:, end] = extreme * _SHRINKS
            errors = _squared_errors(histogram, candidates, levels)
            best = int(np.argmin(errors))
            if errors[best] < least:
                least, moved = float(errors[best]), True
                ends[end] = float(candidates[best, end])
    return ends[0], ends[1]


def _squared_errors(histogram: Histogram, ranges: Array, levels: int) -> Array:
    """Returns the sum of squared errors of each range, for values spread evenly within each bin.

    Within the range the error of x is its distance to the next multiple of the step s. From 0 to
    x its square integrates to ``s^3 (n / 12 + t^3 / 3)``, where ``x / s = n + t`` and n is the
    nearest whole number; beyond an end e, to another ``(x - e)^3 / 3``. The ranges are c x 2, low
    and high ends; the c errors are in squared widths of a bin.
    """
    low, high = ranges[:, :1], ranges[:, 1:]
    step = (high - low) / (levels - 1)
    # Runtimes round the zero point, which moves the range by part of a step.
    zero_point = np.rint(-low / step)
    inside = np.clip(histogram.edges, -zero_point * step, (levels - 1 - zero_point) * step)
    steps = inside / step
    nearest = np.rint(steps)
    integral = step**3 * (nearest / 12 + _cube(steps - nearest) / 3)
    integral += _cube(histogram.edges - inside) / 3
    errors: Array = np.diff(integral, axis=1) @ histogram.counts
    return errors


def _cube(values: Array) -> Array:
    return values * values * values  # A power is many times slower.


def _entropy(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Minimizes the divergence of the quantized from the observed distribution.

    S. Migacz, "8-bit Inference with TensorRT", 2017. One threshold clips both sides.
    """
    counts, first = histogram.smooth_counts, histogram.first
    last = first + len(counts)
    best, least = (histogram.low, histogram.high), math.inf
    reach = max(-first, last)
    for threshold in np.unique(np.linspace(1, reach, _ENTROPY_CANDIDATES).astype(int)):
        low, high = max(first, -int(threshold)), min(last, int(threshold))
        kept = counts[low - first : high - first]
        if len(kept) < levels or not kept.any():
            continue
        below, above = counts[: low - first].sum(), counts[high - first :].sum()
        divergence = _divergence(kept, below, above, levels)
        if divergence <= least:
            best, least = (float(low), float(high)), divergence
    return best


def _divergence(kept: Array, below: int, above: int, levels: int) -> float:
    """Returns the Kullback-Leibler divergence of clipped and rounded counts from those observed.

    Clipping moves the values below and above the range to its first and last bin.
    """
    observed = kept.astype(np.float64)
    observed[0] += below
    observed[-1] += above
    level = np.arange(len(kept)) * levels // len(kept)
    # A level is spread over its bins that are not empty.
    sums = np.bincount(level, kept)
    occupied = np.bincount(level, kept > 0)
    spread = np.where(kept > 0, (sums / np.maximum(occupied, 1))[level], _EMPTY_BIN)
    present = observed > 0
    p = observed[present] / observed.sum()
    q = spread[present] / spread.sum()
    return float(np.sum(p * np.log(p / q)))


METHODS: Mapping[str, Callable[[Histogram, int], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
"""Ways to estimate a range, by name."""
