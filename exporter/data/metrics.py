"""Measures the agreement of predictions with labels, and with each other."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.data import Array, Samples

MetricName = Literal["accuracy", "mse"]

_BINARY_THRESHOLD = 0.5
_ROW_SUM_ERROR = 1e-3


@dataclass(frozen=True)
class Metric:
    """A metric on labelled data: ``accuracy``, 0 to 1, or ``mse``, the mean squared error."""

    name: MetricName
    value: float
    samples: int


def task_metric(predictions: Array, labels: Array) -> Metric:
    """Measures predictions against labels: accuracy for classes, otherwise the squared error.

    Predictions have the shape (samples, classes), (samples, 1) for two classes, or any other shape;
    labels are integer classes (samples,), one-hot rows, or values of the predictions' shape.
    """
    if is_classes(labels) or is_one_hot(labels):
        classes = labels if is_classes(labels) else labels.argmax(axis=-1)
        hits = predicted_classes(predictions) == classes
        return Metric("accuracy", float(np.mean(hits)), len(labels))
    difference = predictions.astype(np.float64) - labels
    return Metric("mse", float(np.mean(difference**2)), len(labels))


def trivial_metric(labels: Array) -> Metric:
    """Returns the metric of the best constant prediction: the commonest class, or the mean."""
    if is_classes(labels):
        return Metric("accuracy", float(np.bincount(labels).max() / len(labels)), len(labels))
    if is_one_hot(labels):
        return Metric("accuracy", float(labels.mean(axis=0).max()), len(labels))
    variance = np.var(labels.astype(np.float64), axis=0)
    return Metric("mse", float(np.mean(variance)), len(labels))


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


def predicted_classes(predictions: Array) -> Array:
    """Returns the class of each row; a single column is the probability of the second class."""
    if predictions.shape[-1] == 1:
        return (predictions[..., 0] > _BINARY_THRESHOLD).astype(np.int64)
    classes: Array = predictions.argmax(axis=-1)
    return classes


def is_classes(labels: Samples) -> bool:
    """Tells whether labels are integer classes, one a sample."""
    return labels.ndim == 1 and labels.dtype.kind in "biu"


def is_one_hot(labels: Array) -> bool:
    """Tells whether labels are rows of zeros with a single one."""
    return bool(
        labels.ndim == 2
        and labels.shape[1] > 1
        and np.isin(labels, (0, 1)).all()
        and (labels.sum(axis=1) == 1).all()
    )


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


def top1_agreement(predictions: Array, reference: Array) -> float:
    """Returns the part of samples, 0 to 1, with the same class in both predictions."""
    return float(np.mean(predicted_classes(predictions) == predicted_classes(reference)))


def snr_db(predictions: Array, reference: Array) -> float:
    """Returns ``10 log10(sum ref^2 / sum (y - ref)^2)`` in decibels; infinite if they are equal."""
    signal = np.sum(np.square(reference.astype(np.float64)))
    noise = np.sum(np.square(predictions.astype(np.float64) - reference))
    return decibels(float(signal / noise)) if noise != 0 else float("inf")


def decibels(ratio: float) -> float:
    """Returns a ratio of powers in decibels; zero gives minus infinity."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(ratio))
