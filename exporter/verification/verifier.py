"""Artifacts of one compressed model, held against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.data import UINT8_MAX, Dataset
from exporter.data.metrics import Metric, task_metric
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, Format
from exporter.formats.variants import QualityRule, ToleranceRule
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed
from exporter.verification.compression import outputs_with_classes
from exporter.verification.parity import Outputs, Parity, compare, execute, find_faults
from exporter.verification.probes import Limits, Probe, make_probes, predict, samples_within
from exporter.verification.quality import Quality, judge_quality
from exporter.verification.structure import StructureProof, prove_structure
from exporter.verification.tolerance import (
    Predictions,
    Tolerances,
    derive_tolerances,
    float64_copy,
    given_tolerances,
)

SLOW_MACS = 2_000_000_000
"""What slow executions (reference kernels, float64) may cost a probe; they see fewer samples."""

_FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class ConversionVerdict:
    """Whether an artifact is the compressed Keras model.

    Attributes:
        parity: Its predictions compared within a tolerance; None if it is quantized, or the
            runtime could not run it.
        quality: Of a quantized artifact, how near it is; None otherwise.
        structure: What is stored in it; None if it could not be parsed.
        metrics: Task metric of the artifact itself, by output; empty without labels.
        error: Why it could not be run or parsed.
    """

    parity: Parity | None
    structure: StructureProof | None
    metrics: dict[str, Metric]
    quality: Quality | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran, predicts the same, and stores what was planned."""
        judged = self.parity or self.quality
        return (
            self.error is None
            and judged is not None
            and judged.passed
            and self.structure is not None
            and self.structure.passed
        )


class Verifier:
    """Verifies artifacts; probes, reference and tolerances are made once and serve them all.

    Attributes:
        probes: The inputs that artifacts are compared on; the first counts most.
        reference: What the compressed model predicts, by probe and output.
        macs: Multiply-accumulates of the compressed model, for one sample.
    """

    def __init__(
        self,
        compressed: Compressed,
        dataset: Dataset,
        *,
        folder: Path,
        atol: float | None = None,
        rtol: float | None = None,
        seed: int = 0,
    ) -> None:
        """Predicts the probes.

        Args:
            compressed: The model and its plan.
            dataset: Fitted to the model.
            folder: For arrays that go to child processes and back.
            atol: Absolute tolerance; with ``rtol`` None as well, both are derived.
            rtol: Relative tolerance.
            seed: Of the random probe.
        """
        self._compressed = compressed
        self._folder = folder
        self._atol, self._rtol = atol, rtol
        network = compressed.network
        largest = UINT8_MAX if network.scales_input else 1
        self.macs = network.macs
        self.probes = make_probes(
            network.inputs, network.outputs, dataset, seed, largest=largest, macs=self.macs
        )
        self._limit = max(_FEWEST_SAMPLES, SLOW_MACS // max(1, self.macs))
        self.reference = _predict_all(network, self.probes)
        first = self.probes[0]
        self._classes = outputs_with_classes(self.reference[first.name], first.labels)
        self._exact: Predictions | None = None

    def verify(self, artifact: Artifact) -> ConversionVerdict:
        """Runs and parses an artifact, and holds it against the compressed model.

        Raises:
            ModelError: If the tolerance is to be derived and the model has no float64 copy.
        """
        fmt = FORMATS[artifact.format]
        variant = fmt.variant(artifact.variant)
        try:
            stored = fmt.stored_tensors(artifact.path)
        except Exception as error:  # Parsers raise whatever a damaged file makes them run into.
            return ConversionVerdict(None, None, {}, error=f"{type(error).__name__}: {error}")
        structure = prove_structure(stored, artifact.size, self._compressed, variant.weight_bits)
        limits = self._limits(fmt)
        try:
            outputs = execute(artifact, self.probes, self._folder, limits)
        except (ChildError, OSError, ValueError) as error:
            return ConversionVerdict(None, structure, {}, error=str(error))
        first = self.probes[0]
        parity, quality = self._judge(outputs, limits, variant.rule)
        shipped = outputs[fmt.backends[0]][first.name]
        count = samples_within(first, limits[fmt.backends[0]])
        expected = {name: y[:count] for name, y in self.reference[first.name].items()}
        metrics = {
            name: task_metric(shipped[name], labels[:count])
            for name, labels in first.labels.items()
            if name in shipped and shipped[name].shape == expected[name].shape
        }
        return ConversionVerdict(parity, structure, metrics, quality)

    def _limits(self, fmt: Format) -> Limits:
        first, *others = fmt.backends
        return {first: self._limit if fmt.slow else None, **dict.fromkeys(others, self._limit)}

    def _judge(
        self, outputs: Outputs, limits: Limits, rule: ToleranceRule | QualityRule
    ) -> tuple[Parity | None, Quality | None]:
        probes, classes = self.probes, self._classes
        if isinstance(rule, ToleranceRule):
            tolerances = self._tolerances(rule)
            parity = compare(
                outputs, self.reference, probes, tolerances, limits=limits, classes=classes
            )
            return parity, None
        faults = find_faults(outputs, self.reference, probes, limits=limits)
        quality = judge_quality(
            outputs, self.reference, probes[0], rule, faults, limits=limits, classes=classes
        )
        return None, quality

    def _tolerances(self, rule: ToleranceRule) -> Tolerances:
        if self._atol is not None or self._rtol is not None:
            return given_tolerances(self.reference, self._atol, self._rtol)
        if self._exact is None:
            exact = float64_copy(self._compressed.network)
            self._exact = _predict_all(exact, self.probes, self._limit)
        return derive_tolerances(self.reference, self._exact, rule)


def _predict_all(
    network: Network, probes: Sequence[Probe], limit: int | None = None
) -> Predictions:
    runner = network.runner()
    return {probe.name: predict(runner, probe, limit) for probe in probes}
