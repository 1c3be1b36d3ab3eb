"""Measures the agreement of predictions with labels, and with each other."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.data.lazy import Array

MetricName = Literal["accuracy", "mse"]

_ROW_SUM_ERROR = 1e-3

NEGLIGIBLE = 1e-3
LEAST_CHANNEL_RATIO = 4.0
"""A channel is lost if its variance is less than so many times the mean square of its error."""


@dataclass(frozen=True)
class Metric:
    """A metric on labelled data: ``accuracy``, 0 to 1, or ``mse``, the mean squared error."""

    name: MetricName
    value: float
    samples: int


def is_better(value: Metric, other: Metric) -> bool:
    """Tells whether ``value`` is strictly better than ``other``, a metric of the same name."""
    return (value.value > other.value) if value.name == "accuracy" else (value.value < other.value)


def loss_of(before: Metric, after: Metric) -> float:
    """Returns the loss of accuracy, 0 to 1, or the relative growth of an error."""
    if before.name == "accuracy":
        return before.value - after.value
    if after.value <= before.value:
        return 0.0
    return (after.value - before.value) / before.value if before.value else float("inf")


def are_probabilities(predictions: Array) -> bool:
    """Tells whether the rows of a matrix are distributions, as a softmax gives them."""
    return bool(
        predictions.ndim >= 2
        and predictions.shape[-1] > 1
        and predictions.dtype.kind == "f"
        and np.isfinite(predictions).all()
        and (predictions >= 0).all()
        and (np.abs(predictions.astype(np.float64).sum(axis=-1) - 1) < _ROW_SUM_ERROR).all()
    )


def snr_db(predictions: Array, reference: Array) -> float:
    """Returns ``10 log10(sum ref^2 / sum (y - ref)^2)`` in decibels; infinite if they are equal.

    Elements that are not finite in the reference are left out.
    """
    finite = np.isfinite(reference)
    wanted = reference[finite].astype(np.float64)
    return _ratio_db(np.sum(wanted**2), np.sum((predictions[finite] - wanted) ** 2))


def centred_snr_db(predictions: Array, reference: Array) -> float:
    """Returns the signal to noise ratio of what varies: about the mean of each channel.

    A channel is an index of the last axis. Where nothing varies, it is ``snr_db``.
    """
    signal, noise = _by_channel(predictions, reference)
    if not signal.any():
        return snr_db(predictions, reference)
    return _ratio_db(signal.sum(), noise.sum())


def lost_channels(predictions: Array, reference: Array) -> float:
    """Returns the part of the channels, 0 to 1, whose noise hides what varies in them.

    A channel that varies by less than ``NEGLIGIBLE`` of the one that varies most does not count.
    """
    signal, noise = _by_channel(predictions, reference)
    counted = signal > NEGLIGIBLE**2 * signal.max(initial=0.0)
    if not counted.any():
        return 0.0
    # Written so that NaN counts as lost.
    kept = signal[counted] >= LEAST_CHANNEL_RATIO * noise[counted]
    return float(1 - kept.mean())


def _by_channel(predictions: Array, reference: Array) -> tuple[Array, Array]:
    """Returns the variance of the reference and the mean square of the error, by channel."""
    wanted = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    errors = predictions.reshape(wanted.shape) - wanted
    wanted = np.where(np.isfinite(wanted), wanted, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # A channel without a finite element.
        signal = np.nan_to_num(np.nanvar(wanted, axis=0))
    return signal, np.mean(np.where(np.isfinite(wanted), errors**2, 0.0), axis=0)


def _ratio_db(signal: float, noise: float) -> float:
    return decibels(float(signal / noise)) if noise != 0 else float("inf")


def decibels(ratio: float) -> float:
    """Returns a ratio of powers in decibels; zero gives minus infinity."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(ratio))
