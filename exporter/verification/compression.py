"""The cost of compression: the compressed Keras model against its baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.data import Array, Task
from exporter.data.metrics import Metric, are_probabilities, is_better, snr_db


@dataclass(frozen=True)
class OutputCompression:
    """One output of the compressed model against the baseline's.

    Attributes:
        snr_db: Signal to noise ratio in decibels.
        top1_agreement: Part of the samples with the same class; None without classes.
        baseline: Task metric of the baseline; None without labels.
        compressed: Task metric of the compressed model; None without labels.
        trivial: Task metric of the best constant prediction; None without labels.
        collapsed: Whether the output is not finite, constant, or no better than a constant one
            although the baseline's is.
    """

    output: str
    samples: int
    snr_db: float
    top1_agreement: float | None
    baseline: Metric | None
    compressed: Metric | None
    trivial: Metric | None
    collapsed: bool


@dataclass(frozen=True)
class CompressionVerdict:
    """Tells whether the compressed model is still a model; its quality is for the user to judge.

    ``labelled`` tells whether there were labels to measure the task by.
    """

    outputs: tuple[OutputCompression, ...]
    labelled: bool

    @property
    def passed(self) -> bool:
        """Whether no output has collapsed."""
        return not any(output.collapsed for output in self.outputs)


def judge_compression(
    baseline: Mapping[str, Array],
    compressed: Mapping[str, Array],
    labels: Mapping[str, Array],
    tasks: Mapping[str, Task],
) -> CompressionVerdict:
    """Compares predictions on the same inputs, and their metrics for outputs with test labels.

    ``tasks`` tells for each output what its values and labels mean; see ``output_tasks``.
    """
    outputs = []
    for name, original in baseline.items():
        values, before, after, trivial = compressed[name], None, None, None
        task = tasks.get(name, Task())
        varies = len(values) == 1 or (values != values[:1]).any()
        collapsed = not (np.isfinite(values).all() and varies)
        if name in labels:
            before, after = (task.metric(each, labels[name]) for each in (original, values))
            trivial = task.trivial(labels[name])
            collapsed |= is_better(before, trivial) and not is_better(after, trivial)
        agreement = task.agreement(values, original) if task.classes else None
        ratio = snr_db(values, original)
        outputs.append(
            OutputCompression(
                name, len(values), ratio, agreement, before, after, trivial, bool(collapsed)
            )
        )
    return CompressionVerdict(tuple(outputs), bool(labels))


def output_tasks(predictions: Mapping[str, Array], tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Completes the tasks of outputs with labels: others tell classes if they are distributions."""

    def guessed(values: Array) -> Task:
        return Task(classes=values.shape[-1]) if are_probabilities(values) else Task()

    return {name: tasks.get(name) or guessed(values) for name, values in predictions.items()}
