"""What quantization cost: a quantized artifact against the float Keras model it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.data.metrics import loss_of, snr_db, task_metric, top1_agreement
from exporter.formats.variants import QualityRule
from exporter.verification.parity import Fault, Outputs
from exporter.verification.probes import Limits, Probe, samples_within
from exporter.verification.tolerance import Predictions


@dataclass(frozen=True)
class OutputQuality:
    """One output, on the first probe, in one backend.

    Attributes:
        backend: How the runtime executed the artifact.
        output: The output.
        samples: How many samples.
        snr_db: Signal to noise ratio in decibels; infinite if equal.
        top1_agreement: Part of the samples with the same class; None where there are no classes.
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
    """How near a quantized artifact is to the float model.

    Attributes:
        outputs: One entry a backend and output.
        faults: Outputs that nothing can excuse.
        limits: What was asked for.
    """

    outputs: tuple[OutputQuality, ...]
    faults: tuple[Fault, ...]
    limits: QualityRule

    @property
    def passed(self) -> bool:
        """Whether there is something compared, all of it within the limits, and no fault."""
        within = all(output.passed for output in self.outputs)
        return bool(self.outputs) and within and not self.faults


def judge_quality(
    outputs: Outputs,
    reference: Predictions,
    probe: Probe,
    rule: QualityRule,
    faults: Sequence[Fault],
    *,
    limits: Limits,
    classes: frozenset[str],
) -> Quality:
    """Compares what an artifact predicted for a probe with the reference.

    Args:
        outputs: Arrays by backend, probe and output, as ``execute`` returns them.
        reference: The Keras model's predictions by probe and output.
        probe: Real data, where there are any.
        rule: The limits.
        faults: What ``find_faults`` found.
        limits: As given to ``execute``.
        classes: Outputs whose largest element names a class.
    """
    judged = []
    for backend, by_probe in outputs.items():
        count = samples_within(probe, limits[backend])
        for output, all_expected in reference[probe.name].items():
            expected, values = all_expected[:count], by_probe[probe.name].get(output)
            if values is None or values.shape != expected.shape:
                continue
            ratio, agreement, drop = snr_db(values, expected), None, None
            if output in classes:
                agreement = top1_agreement(values, expected)
            if output in probe.labels:
                labels = probe.labels[output][:count]
                drop = loss_of(task_metric(expected, labels), task_metric(values, labels))
            # Written so that NaN fails.
            passed = (
                ratio >= rule.snr_db
                and (agreement is None or agreement >= rule.agreement)
                and (drop is None or drop <= rule.drop)
            )
            judged.append(
                OutputQuality(backend, output, len(values), ratio, agreement, drop, passed)
            )
    return Quality(tuple(judged), tuple(faults), rule)
