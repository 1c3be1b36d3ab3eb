"""The cost of quantization: a quantized artifact against the float Keras model it was made from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.data import Task
from exporter.data.metrics import centred_snr_db, loss_of, lost_channels, snr_db
from exporter.formats.variants import QualityRule
from exporter.verification.parity import Execution, Fault, find_faults, spread
from exporter.verification.rounding import Excess

LOST_CHANNELS = 0.1
"""The most channels, as a part of all, that may tell nothing any more."""

_DEVIATIONS = 2.33
"""A limit is missed if chance would explain it once in a hundred times."""


@dataclass(frozen=True)
class OutputQuality:
    """One output, on the first probe, in one backend.

    Attributes:
        snr_db: Signal to noise ratio in decibels; infinite if equal. That of values is taken about
            the mean of each channel.
        lost_channels: Part of the channels, 0 to 1, that tell nothing any more; None with classes.
        top1_agreement: Part of the samples with the same class; None without classes. The limit is
            for those that the reference decides: see ``Task.ties``.
        drop: Loss of accuracy, 0 to 1; of another metric, relative. None without labels.
        passed: Whether each of these is within the limits.
        excess: The noise beside what rounding explains; None for backends other than the one that
            ships, and if it could not be measured.
    """

    backend: str
    output: str
    samples: int
    snr_db: float
    top1_agreement: float | None
    drop: float | None
    passed: bool
    lost_channels: float | None = None
    excess: Excess | None = None


@dataclass(frozen=True)
class Quality:
    """The comparison of a quantized artifact, by backend and output, and its faults."""

    outputs: tuple[OutputQuality, ...]
    faults: tuple[Fault, ...]
    limits: QualityRule

    @property
    def passed(self) -> bool:
        """Whether anything was compared, and is within the limits, and there is no new fault."""
        within = all(output.passed for output in self.outputs)
        return bool(self.outputs) and within and all(fault.in_reference for fault in self.faults)


def judge_quality(
    execution: Execution,
    rule: QualityRule,
    tasks: Mapping[str, Task],
    excesses: Mapping[str, Excess] | None = None,
) -> Quality:
    """Compares an artifact with the reference on the first probe, and finds faults on all probes.

    Args:
        execution: What the artifact predicts in its backends; the first one ships.
        rule: The limits of the variant, whatever the model is.
        tasks: What the values and labels of each output mean.
        excesses: The noise of each output in that backend, beside what rounding explains.
    """
    shipped = next(iter(execution.outputs))
    judged = []
    for backend, probe, output, values, expected in execution.pairs():
        if probe is not execution.probes[0] or values is None or values.shape != expected.shape:
            continue
        task, agreement, drop, lost = tasks.get(output, Task()), None, None, None
        decided = None
        if task.classes:
            ratio, agreement = snr_db(values, expected), task.agreement(values, expected)
            kept = (task.predicted(values) == task.predicted(expected)) | task.ties(expected)
            decided = float(np.mean(kept))
        else:
            ratio, lost = centred_snr_db(values, expected), lost_channels(values, expected)
        if output in probe.labels:
            labels = probe.labels[output][: len(values)]
            drop = loss_of(task.metric(expected, labels), task.metric(values, labels))
        excess = excesses.get(output) if excesses and backend == shipped else None
        # Written so that NaN fails.
        passed = (
            ratio >= rule.snr_db
            and (excess is None or excess.passed)
            and (decided is None or _highest(decided, len(values)) >= rule.agreement)
            and (drop is None or drop - _chance(agreement, len(values)) <= rule.drop)
            and (lost is None or lost <= LOST_CHANNELS)
        )
        judged.append(
            OutputQuality(
                backend, output, len(values), ratio, agreement, drop, passed, lost, excess
            )
        )
    noise = {
        output: spread(expected) * 10 ** (-rule.snr_db / 20)
        for output, expected in execution.reference[execution.probes[0].name].items()
    }
    return Quality(tuple(judged), find_faults(execution, noise), rule)


def _highest(part: float, samples: int) -> float:
    """Returns the upper end of the interval of Wilson (1927) for a part of some samples."""
    spread = _DEVIATIONS * math.sqrt(
        part * (1 - part) / samples + (_DEVIATIONS / (2 * samples)) ** 2
    )
    middle = part + _DEVIATIONS**2 / (2 * samples)
    return (middle + spread) / (1 + _DEVIATIONS**2 / samples) if part < 1 else 1.0


def _chance(agreement: float | None, samples: int) -> float:
    """Returns the loss of accuracy that may be chance: only samples that changed can count."""
    if agreement is None:
        return 0.0
    return _DEVIATIONS * math.sqrt((1 - agreement) / samples)
