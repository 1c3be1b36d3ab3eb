"""The baseline itself: whether it knows anything of the labels, before work is spent on it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.data import Array, Dataset, Split, Task
from exporter.data.metrics import Metric
from exporter.graph.network import Network
from exporter.graph.outputs import Family, by_sample, task_loss
from exporter.graph.runner import predict_in_batches

SAMPLES = 2_000
MACS = 50_000_000_000
"""What each part is judged by: so many samples, fewer where they would take more MACs."""

_LEAST = 16
_BATCH = 64
_MANY = 100
_CLEAR = 3.0
"""Standard errors by which a model must be better than a constant, if there are many samples."""


@dataclass(frozen=True)
class OutputBaseline:
    """One output of the baseline on one labelled part of the data.

    Attributes:
        metric: The task metric of the baseline.
        trivial: That of the best constant.
        passed: Whether the baseline is better than a constant by accuracy or squared error, by its
            cross-entropy, or by the mean recall of the classes.
        reordered: Whether it would be, by far, if its classes stood in another order.
    """

    output: str
    part: str
    metric: Metric
    trivial: Metric
    passed: bool
    reordered: bool = False


@dataclass(frozen=True)
class BaselineVerdict:
    """Tells whether the baseline knows anything of the labels; it passes where there are none."""

    outputs: tuple[OutputBaseline, ...]

    @property
    def passed(self) -> bool:
        """Whether an output is better than a constant, on the training or on the test part."""
        return not self.outputs or any(output.passed for output in self.outputs)

    @property
    def told(self) -> str:
        """What was measured, in words."""
        lines = []
        for each in self.outputs:
            as_text = "{:.2%}" if each.metric.name == "accuracy" else "{:.4g}"
            value, trivial = (as_text.format(m.value) for m in (each.metric, each.trivial))
            lines.append(
                f"{each.metric.name} of {each.output!r} on {each.metric.samples:,} samples "
                f"({each.part}) {value}, of a constant {trivial}"
            )
        return "; ".join(lines)


def judge_baseline(network: Network, dataset: Dataset) -> BaselineVerdict:
    """Compares a model with the best constant on the labelled parts of data fitted to it.

    A model that has learned its training data passes, whatever the test part tells.
    """
    families, judged = network.families(dataset.tasks), []
    for part, split in dataset.parts.items():
        for name, predicted, labels in _predictions(network, split):
            task = dataset.tasks.get(name, Task())
            if len(labels) < _LEAST or not (labels != labels[:1]).any():
                continue
            found = _judge(predicted, labels, task, families[name])
            judged.append(OutputBaseline(name, part, *found))
    return BaselineVerdict(tuple(judged))


def _predictions(network: Network, split: Split) -> Iterator[tuple[str, Array, Array]]:
    fixed = network.fixed_batch or 1
    count = min(len(split), SAMPLES, max(_LEAST, MACS // max(1, network.macs))) // fixed * fixed
    if not count or not split.labels:
        return
    head = split.take(slice(count)).read()
    batch = network.fixed_batch or _BATCH
    predictions = predict_in_batches(network.runner(), head.inputs, batch, count)
    for name, labels in head.labels.items():
        yield name, predictions[name], np.asarray(labels)


def _judge(
    predicted: Array, labels: Array, task: Task, family: Family
) -> tuple[Metric, Metric, bool, bool]:
    """Returns the metric, that of a constant, ``passed`` and ``reordered``."""
    metric, trivial = task.metric(predicted, labels), task.trivial(labels)
    if not np.isfinite(predicted).all():
        return metric, trivial, False, False
    if not task.classes:
        wanted, values = labels.astype(np.float64), predicted.astype(np.float64)
        gain = (wanted - wanted.mean(axis=0)) ** 2 - (wanted - values) ** 2
        passed = _is_better(gain.reshape(len(gain), -1).mean(axis=1))
        return metric, trivial, passed, False
    classes = task.predicted(predicted)
    numbers, counts = np.unique(labels, return_counts=True)
    hits = (classes == labels).reshape(len(labels), -1).mean(axis=1)
    recalls = np.array([(classes[labels == number] == number).mean() for number in numbers])
    spread = np.sqrt(np.sum(recalls * (1 - recalls) / counts)) / len(numbers)
    passed = (
        _is_better(hits - trivial.value)
        or _is_better(_gain_in_nats(predicted, labels, task, family))
        or float(recalls.mean()) - 1 / len(numbers) > _CLEAR * float(spread) > 0
    )
    best = sum(np.max(np.bincount(labels[classes == c].ravel())) for c in np.unique(classes))
    reordered = best / labels.size > max(2 * metric.value, trivial.value + 0.1)
    return metric, trivial, bool(passed), bool(reordered)


def _gain_in_nats(
    predicted: Array, labels: Array, task: Task, family: Family
) -> NDArray[np.float64]:
    """Returns by how much each cross-entropy is below that of the frequencies of the classes."""
    import tensorflow as tf

    if family == "gaussian":
        return np.zeros(len(labels))
    frequencies = np.bincount(labels.ravel(), minlength=task.classes or 0) / labels.size
    constant = -np.log(np.maximum(frequencies, 1e-12))[labels].reshape(len(labels), -1)
    losses = task_loss(tf.constant(predicted), tf.constant(labels), family, task)
    gain: NDArray[np.float64] = constant.mean(axis=1) - by_sample(losses).numpy()
    return gain


def _is_better(gain: NDArray[np.float64]) -> bool:
    """Tells whether gains are positive on average, and clearly so if there are many."""
    error = float(np.std(gain)) / np.sqrt(len(gain))
    return float(np.mean(gain)) > (_CLEAR * error if len(gain) >= _MANY else 0.0)
