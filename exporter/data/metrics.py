"""Measures the agreement of predictions with labels, and with each other."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.data.lazy import Array

MetricName = Literal["accuracy", "mse"]

_ROW_SUM_ERROR = 1e-3


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
    """Returns ``10 log10(sum ref^2 / sum (y - ref)^2)`` in decibels; infinite if they are equal."""
    signal = np.sum(np.square(reference.astype(np.float64)))
    noise = np.sum(np.square(predictions.astype(np.float64) - reference))
    return decibels(float(signal / noise)) if noise != 0 else float("inf")


def decibels(ratio: float) -> float:
    """Returns a ratio of powers in decibels; zero gives minus infinity."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(ratio))
