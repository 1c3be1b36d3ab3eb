"""The cost of quantization: a quantized artifact against the float Keras model it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.data import Task
from exporter.data.metrics import loss_of, snr_db
from exporter.formats.variants import QualityRule
from exporter.verification.parity import Execution, Fault, find_faults


@dataclass(frozen=True)
class OutputQuality:
    """One output, on the first probe, in one backend.

    Attributes:
        snr_db: Signal to noise ratio in decibels; infinite if equal.
        top1_agreement: Part of the samples with the same class; None without classes.
        drop: Loss of accuracy, 0 to 1; of another metric, relative. None without labels.
        passed: Whether each of these is within the limits.
    """

    backend: str
    output: str
    samples: int
    snr_db: float
    top1_agreement: float | None
    drop: float | None
    passed: bool


@dataclass(frozen=True)
class Quality:
    """The comparison of a quantized artifact, by backend and output, and its faults."""

    outputs: tuple[OutputQuality, ...]
    faults: tuple[Fault, ...]
    limits: QualityRule

    @property
    def passed(self) -> bool:
        """Whether anything was compared, all of it is within the limits, and there is no fault."""
        within = all(output.passed for output in self.outputs)
        return bool(self.outputs) and within and not self.faults


def judge_quality(execution: Execution, rule: QualityRule, tasks: Mapping[str, Task]) -> Quality:
    """Compares an artifact with the reference on the first probe, and finds faults on all probes.

    ``tasks`` tells for each output what its values and labels mean.
    """
    judged = []
    for backend, probe, output, values, expected in execution.pairs():
        if probe is not execution.probes[0] or values is None or values.shape != expected.shape:
            continue
        ratio, agreement, drop = snr_db(values, expected), None, None
        task = tasks.get(output, Task())
        if task.classes:
            agreement = task.agreement(values, expected)
        if output in probe.labels:
            labels = probe.labels[output][: len(values)]
            drop = loss_of(task.metric(expected, labels), task.metric(values, labels))
        # Written so that NaN fails.
        passed = (
            ratio >= rule.snr_db
            and (agreement is None or agreement >= rule.agreement)
            and (drop is None or drop <= rule.drop)
        )
        judged.append(OutputQuality(backend, output, len(values), ratio, agreement, drop, passed))
    return Quality(tuple(judged), find_faults(execution), rule)
