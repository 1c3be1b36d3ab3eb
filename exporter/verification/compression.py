"""The cost of compression: the compressed Keras model against its baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.data import Array
from exporter.data.metrics import (
    Metric,
    are_probabilities,
    is_better,
    is_classes,
    is_one_hot,
    snr_db,
    task_metric,
    top1_agreement,
    trivial_metric,
)


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
) -> CompressionVerdict:
    """Compares predictions on the same inputs, and their metrics for outputs with test labels."""
    outputs = []
    classes = outputs_with_classes(baseline, labels)
    for name, original in baseline.items():
        values, before, after, trivial = compressed[name], None, None, None
        varies = len(values) == 1 or (values != values[:1]).any()
        collapsed = not (np.isfinite(values).all() and varies)
        if name in labels:
            before, after = (task_metric(each, labels[name]) for each in (original, values))
            trivial = trivial_metric(labels[name])
            collapsed |= is_better(before, trivial) and not is_better(after, trivial)
        agreement = top1_agreement(values, original) if name in classes else None
        ratio = snr_db(values, original)
        outputs.append(
            OutputCompression(
                name, len(values), ratio, agreement, before, after, trivial, bool(collapsed)
            )
        )
    return CompressionVerdict(tuple(outputs), bool(labels))


def outputs_with_classes(
    predictions: Mapping[str, Array], labels: Mapping[str, Array]
) -> frozenset[str]:
    """Returns the outputs whose largest element names a class, by their labels or their values."""
    return frozenset(
        name
        for name, values in predictions.items()
        if are_probabilities(values)
        or (name in labels and (is_classes(labels[name]) or is_one_hot(labels[name])))
    )
