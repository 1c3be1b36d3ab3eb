"""Reads what the labels of an output mean, and holds predictions against them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.data.lazy import Array, Samples, Step, chunks
from exporter.data.metrics import Metric, are_probabilities
from exporter.errors import DataError

Form = Literal["index", "one_hot", "signed"]

BYTE_MAX = 255

TIE = 0.01
"""Probability by which a class leads that the others do not: two and a half steps of 8 bits."""

_FEW = 2


@dataclass(frozen=True)
class OutputHint:
    """What a model tells of an output, beside its shape.

    Attributes:
        probabilities: Whether it is a softmax ("categorical") or a sigmoid ("bernoulli").
        loss: Name of the loss that it was compiled with, as ``mean_squared_error``; None if it was
            not, or with a function of the user's.
        from_logits: Whether that loss takes logits.
    """

    probabilities: Literal["categorical", "bernoulli"] | None = None
    loss: str | None = None
    from_logits: bool = False

    @property
    def is_binary(self) -> bool:
        """Whether a single column tells two classes apart."""
        kinds = ("binary", "hinge", "squared_hinge")
        return self.probabilities == "bernoulli" or (self.loss or "").startswith(kinds)

    @property
    def threshold(self) -> float:
        """The value of a single column above which it tells the second of two classes."""
        if self.from_logits or "hinge" in (self.loss or ""):
            return 0.0
        # A column that is trained by squared errors imitates its labels, 0 and 1.
        return 0.5 if self.probabilities or self.loss else 0.0


@dataclass(frozen=True)
class Task:
    """What the labels of an output mean.

    Labels of classes become int64, counted from 0, one for each sample or position; a prediction
    has a column for each class, or a single one for two. Other labels are values of its shape.

    Attributes:
        classes: The number of classes; None for values.
        threshold: Value of a single column above which it predicts the second class.
        form: How labels were given: as numbers of classes, as one-hot rows, or as -1 and 1.
        first: The number that the first class was given as.
        unit: The labels of classes were given as multiples of this.
        integers: Whether values were given as integers.
    """

    classes: int | None = None
    threshold: float = 0.5
    form: Form = "index"
    first: int = 0
    unit: int = 1
    integers: bool = False

    @property
    def is_logit(self) -> bool:
        """Whether a single column of predictions is the logit of the second class."""
        return bool(self.classes) and self.threshold == 0 and self.form != "signed"

    def predicted(self, predictions: Array) -> Array:
        """Returns the class of each sample or position."""
        if predictions.shape[-1] == 1:
            return (predictions[..., 0] > self.threshold).astype(np.int64)
        classes: Array = predictions.argmax(axis=-1)
        return classes

    def metric(self, predictions: Array, labels: Array) -> Metric:
        """Measures predictions against labels: accuracy of classes, or the mean squared error."""
        if self.classes:
            hits = self.predicted(predictions) == labels
            return Metric("accuracy", float(np.mean(hits)), len(labels))
        difference = predictions.astype(np.float64) - labels
        return Metric("mse", float(np.mean(difference**2)), len(labels))

    def trivial(self, labels: Array) -> Metric:
        """Returns the metric of the best constant: for each position the commonest, or the mean."""
        if self.classes:
            counts = [(labels == number).sum(axis=0) for number in np.unique(labels)]
            share = np.mean(np.max(counts, axis=0)) / len(labels)
            return Metric("accuracy", float(share), len(labels))
        variance = np.var(labels.astype(np.float64), axis=0)
        return Metric("mse", float(np.mean(variance)), len(labels))

    def agreement(self, predictions: Array, reference: Array) -> float:
        """Returns the part of samples or positions, 0 to 1, with the same class in both."""
        return float(np.mean(self.predicted(predictions) == self.predicted(reference)))

    def ties(self, predictions: Array) -> Array:
        """Tells for each sample or position whether its best class leads by less than ``TIE``."""
        values = predictions.astype(np.float64)
        if values.shape[-1] == 1:
            if self.is_logit:
                values = 1 / (1 + np.exp(-values.clip(-50, 50)))
            middle = 0.5 if self.is_logit else self.threshold
            lead: Array = 2 * np.abs(values[..., 0] - middle)
            return lead < TIE
        if not are_probabilities(predictions):
            values = np.exp(values - values.max(axis=-1, keepdims=True))
            values /= values.sum(axis=-1, keepdims=True)
        second, best = np.moveaxis(np.partition(values, -2, axis=-1)[..., -2:], -1, 0)
        return np.asarray(best - second < TIE)


def read_labels(
    where: str, parts: Sequence[Samples], shape: tuple[int | None, ...], hint: OutputHint
) -> tuple[Task, Step]:
    """Reads what labels mean, and returns a function that gives them the form of ``Task``.

    Args:
        where: Names the labels in messages.
        parts: The labels of all parts of a data set.
        shape: Shape of the output for one sample.
        hint: What the model tells of the output.

    Raises:
        DataError: If they do not fit the output; the function raises it as well, for labels of a
            pipeline that have not been seen.
    """
    given = parts[0].shape[1:]
    *positions, columns = shape or (1,)
    at_positions = fits(given, tuple(positions))
    if not at_positions and fits(given, (*positions, 1)):
        at_positions, given = True, given[:-1]
    values = _Values.of(parts)
    if at_positions and columns != 1 and values.whole:
        first = int(columns is not None and (values.low, values.high) == (1, columns))
        task = Task(columns or int(values.high) + 1, first=first)
        return task, lambda rows: _as_classes(where, rows.reshape(len(rows), *given), task)
    if columns == 1 and at_positions:
        single = _single_column(values, parts[0].dtype.kind, hint)
        if single is None and not positions and hint.probabilities and values.whole:
            raise DataError(
                f"{where} must be classes within 0 and 1, for the output is one probability. "
                f"Received: values from {values.low:g} to {values.high:g}."
            )
        if single is not None:
            return single, lambda rows: _as_classes(where, rows.reshape(len(rows), *given), single)
        values_task = Task(integers=parts[0].dtype.kind in "iu")
        return values_task, lambda rows: _as_values(rows.reshape(len(rows), *given, *shape[-1:]))
    if not fits(given, shape):
        raise DataError(
            f"{where} must be classes, or of shape {shape_text(shape)} like the output. "
            f"Received: {parts[0].dtype} of shape {given}."
        )
    if columns != 1 and values.few == frozenset({0.0, 1.0}) and all(map(_is_one_hot, parts)):
        task = Task(columns or given[-1], form="one_hot")
        return task, lambda rows: np.asarray(rows).argmax(axis=-1)
    return Task(integers=parts[0].dtype.kind in "iu"), _as_values


def fits(sizes: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Tells whether sizes are those of a shape, whose free sizes are None."""
    return len(sizes) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(sizes, shape, strict=True)
    )


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Writes a shape, with ``any`` for free sizes."""
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


@dataclass(frozen=True)
class _Values:
    """The values in some arrays: their range, whether they are whole, all of them if few."""

    low: float
    high: float
    whole: bool
    few: frozenset[float] | None

    @classmethod
    def of(cls, parts: Sequence[Samples]) -> "_Values":
        low, high, whole, few = np.inf, -np.inf, True, frozenset[float]()
        for chunk in (np.asarray(c) for part in parts for c in chunks(part)):
            low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
            whole = whole and bool(chunk.dtype.kind in "biu" or (chunk % 1 == 0).all())
            if len(few) <= _FEW:
                few |= frozenset(np.unique(chunk).astype(float).tolist())
        return cls(low, high, whole, few if len(few) <= _FEW else None)


def _single_column(values: _Values, kind: str, hint: OutputHint) -> Task | None:
    """Reads labels of a single column; returns None if they are values."""
    few = values.few or {np.nan}
    if few <= {0, 1} and (kind in "biu" or hint.is_binary):
        return Task(2, hint.threshold)
    if few == {-1, 1}:
        return Task(2, 0.5 if hint.probabilities else 0.0, "signed")
    if hint.is_binary and few == {1, 2}:
        return Task(2, hint.threshold, first=1)
    if hint.is_binary and few <= {0, BYTE_MAX}:
        return Task(2, hint.threshold, unit=BYTE_MAX)
    return None


def _as_classes(where: str, rows: Array, task: Task) -> Array:
    shifted = rows if task.form == "index" else (rows + 1) // 2
    classes: Array = (shifted // task.unit).astype(np.int64) - task.first
    if classes.size and not 0 <= classes.min() <= classes.max() < (task.classes or 0):
        most = task.first + (task.classes or 0) - 1
        raise DataError(
            f"{where} must be classes within {task.first} and {most}. "
            f"Received: values from {rows.min():g} to {rows.max():g}."
        )
    return classes


def _as_values(rows: Array) -> Array:
    return rows.astype(np.float32) if rows.dtype.kind in "biu" else rows


def _is_one_hot(labels: Samples) -> bool:
    return all((chunk.sum(axis=-1) == 1).all() for chunk in chunks(labels))
