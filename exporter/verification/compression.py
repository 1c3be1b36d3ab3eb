"""What compression cost: the compressed Keras model against its baseline."""

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
        output: The output.
        samples: How many samples.
        snr_db: Signal to noise ratio in decibels.
        top1_agreement: Part of the samples with the same class; None where there are no classes.
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
    """Whether the compressed model is still a model; how good a one is for the user to judge.

    Attributes:
        outputs: One entry an output.
        labelled: Whether there were labels to measure the task by.
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
    """Compares predictions on the same inputs.

    Args:
        baseline: The baseline's predictions by output.
        compressed: The compressed model's.
        labels: Test labels by output, as many as samples; empty without labels.
    """
    outputs = tuple(
        _judge(name, baseline[name], compressed[name], labels.get(name)) for name in baseline
    )
    return CompressionVerdict(outputs, bool(labels))


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


def _judge(
    name: str, baseline: Array, compressed: Array, labels: Array | None
) -> OutputCompression:
    varies = len(compressed) == 1 or bool((compressed != compressed[:1]).any())
    collapsed = not (np.isfinite(compressed).all() and varies)
    metrics: tuple[Metric | None, Metric | None, Metric | None] = (None, None, None)
    if labels is not None:
        before, after = task_metric(baseline, labels), task_metric(compressed, labels)
        trivial = trivial_metric(labels)
        metrics = (before, after, trivial)
        collapsed |= is_better(before, trivial) and not is_better(after, trivial)
    has_classes = name in outputs_with_classes({name: baseline}, _present(name, labels))
    return OutputCompression(
        name,
        len(compressed),
        snr_db(compressed, baseline),
        top1_agreement(compressed, baseline) if has_classes else None,
        *metrics,
        collapsed=bool(collapsed),
    )


def _present(name: str, labels: Array | None) -> dict[str, Array]:
    return {} if labels is None else {name: labels}
