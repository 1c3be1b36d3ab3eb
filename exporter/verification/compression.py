"""The cost of compression: the compressed Keras model against its baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.data import Array, Task
from exporter.data.metrics import Metric, are_probabilities, is_better, loss_of, snr_db

LARGE_DROP = 0.02
LARGE_CHANGE = 0.1
"""Losses that are warned of: of accuracy, and of other figures."""


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
        loss: What was lost: accuracy, 0 to 1; of another metric, its relative growth; without
            labels, the part of samples that changed their class, or of the amplitude that is noise.
        chance: The part of ``loss`` that may be chance.
    """

    output: str
    samples: int
    snr_db: float
    top1_agreement: float | None
    baseline: Metric | None
    compressed: Metric | None
    trivial: Metric | None
    collapsed: bool
    loss: float = 0.0
    chance: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether compression lost more than most users would accept, beyond chance."""
        return self.is_large_loss(self.loss)

    def is_large_loss(self, loss: float) -> bool:
        """Tells whether a loss, such as a later stage's, is more than most users would accept."""
        accuracy = self.baseline is not None and self.baseline.name == "accuracy"
        return loss - self.chance > (LARGE_DROP if accuracy else LARGE_CHANGE)


@dataclass(frozen=True)
class CompressionVerdict:
    """Tells whether the compressed model is still a model; its quality is for the user to judge.

    Attributes:
        labelled: Whether there were labels to measure the task by.
        max_loss: The most that an output may lose; None if the user set no limit.
    """

    outputs: tuple[OutputCompression, ...]
    labelled: bool
    max_loss: float | None = None

    @property
    def passed(self) -> bool:
        """Whether no output has collapsed, or lost more than the limit."""
        return not any(output.collapsed or self.exceeds(output.loss) for output in self.outputs)

    def exceeds(self, loss: float) -> bool:
        """Tells whether a loss is above the user's limit; NaN is."""
        return self.max_loss is not None and not loss <= self.max_loss


def judge_compression(
    baseline: Mapping[str, Array],
    compressed: Mapping[str, Array],
    labels: Mapping[str, Array],
    tasks: Mapping[str, Task],
    max_loss: float | None = None,
) -> CompressionVerdict:
    """Compares predictions on the same inputs, and their metrics for outputs with test labels.

    ``tasks`` tells for each output what its values and labels mean; see ``output_tasks``.
    """
    outputs = []
    for name, original in baseline.items():
        values, before, after, trivial = compressed[name], None, None, None
        task = tasks.get(name, Task())
        broken = (np.isfinite(original) & ~np.isfinite(values)).any()
        empty = not np.isfinite(values).any()
        collapsed = broken or empty or (_varies(original) and not _varies(values))
        if name in labels:
            before, after = (task.metric(each, labels[name]) for each in (original, values))
            trivial = task.trivial(labels[name])
            collapsed |= is_better(before, trivial) and not is_better(after, trivial)
        agreement = task.agreement(values, original) if task.classes else None
        ratio = snr_db(values, original)
        if before is not None and after is not None:
            loss = loss_of(before, after)
        else:
            loss = 10 ** (-ratio / 20) if agreement is None else 1 - agreement
        # Of the samples, only those that changed their class can count.
        changed = 1 - agreement if agreement is not None else 0.0
        chance = 2 * float(np.sqrt(changed / len(values)))
        measured = (ratio, agreement, before, after, trivial, bool(collapsed), loss, chance)
        outputs.append(OutputCompression(name, len(values), *measured))
    return CompressionVerdict(tuple(outputs), bool(labels), max_loss)


def _varies(values: Array) -> bool:
    finite = np.nan_to_num(values)
    return len(values) == 1 or bool((finite != finite[:1]).any())


def output_tasks(predictions: Mapping[str, Array], tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Completes the tasks of outputs with labels: others tell classes if they are distributions."""

    def guessed(values: Array) -> Task:
        return Task(classes=values.shape[-1]) if are_probabilities(values) else Task()

    return {name: tasks.get(name) or guessed(values) for name, values in predictions.items()}
