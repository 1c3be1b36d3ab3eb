"""Verifies the artifacts of one compressed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.data import Dataset
from exporter.data.metrics import Metric
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed
from exporter.verification.compression import output_tasks
from exporter.verification.parity import Execution, Parity, compare, execute
from exporter.verification.probes import Limits, Probe, make_probes, predict
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
"""The most MACs that a slow execution (reference kernels, float64) may spend on a probe."""

_FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class ConversionVerdict:
    """Tells whether an artifact is the compressed Keras model.

    Attributes:
        parity: Comparison within a tolerance; None if the artifact is quantized or did not run.
        structure: Proof of its stored tensors; None if it could not be parsed.
        metrics: Task metric of the artifact itself, by output; empty without labels.
        quality: Comparison of a quantized artifact; None for others and if it did not run.
        error: Why it did not run, or could not be parsed.
    """

    parity: Parity | None
    structure: StructureProof | None
    metrics: dict[str, Metric]
    quality: Quality | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the artifact ran, predicts the same, and stores the planned factors."""
        proofs = (self.parity or self.quality, self.structure)
        return self.error is None and all(proof is not None and proof.passed for proof in proofs)


class Verifier:
    """Verifies artifacts; probes, reference and tolerances are made once and serve them all.

    Attributes:
        probes: The inputs that artifacts are compared on; the first counts most.
        reference: Predictions of the compressed model, by probe and output.
        tasks: What the values of each output mean.
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
        """Predicts the probes, made of a data set that is fitted to the model.

        The tolerance is derived if neither part is given. Arrays go to child processes and back
        through ``folder``.
        """
        self._compressed, self._folder = compressed, folder
        self._atol, self._rtol = atol, rtol
        network = compressed.network
        self.probes = make_probes(network, dataset, seed)
        self._limit = max(_FEWEST_SAMPLES, SLOW_MACS // max(1, network.macs))
        self.reference = _predict_all(network, self.probes)
        first = self.probes[0]
        self.tasks = output_tasks(self.reference[first.name], dataset.tasks)
        self._exact: Predictions | None = None

    def verify(self, artifact: Artifact) -> ConversionVerdict:
        """Runs and parses an artifact, and compares it with the compressed model.

        Raises:
            ModelError: If the tolerance is to be derived and the model has no float64 copy.
        """
        fmt = FORMATS[artifact.format]
        variant = fmt.variant(artifact.variant)
        try:
            stored = fmt.stored_tensors(artifact.path)
        except Exception as error:  # Parsers raise any exception on a damaged file.
            return ConversionVerdict(None, None, {}, error=f"{type(error).__name__}: {error}")
        structure = prove_structure(stored, artifact.size, self._compressed, variant.weight_bits)
        shipped, *others = fmt.backends
        limits: Limits = {
            shipped: self._limit if fmt.slow else None,
            **dict.fromkeys(others, self._limit),
        }
        try:
            outputs = execute(artifact, self.probes, self._folder, limits)
        except (ChildError, OSError, ValueError) as error:
            return ConversionVerdict(None, structure, {}, error=str(error))
        execution = Execution(outputs, self.reference, self.probes, limits)
        metrics = {
            output: self.tasks[output].metric(values, probe.labels[output][: len(values)])
            for backend, probe, output, values, expected in execution.pairs()
            if (backend == shipped and probe is self.probes[0] and output in probe.labels)
            and (values is not None and values.shape == expected.shape)
        }
        if variant.rule is None:
            parity = compare(execution, self._tolerances(), self.tasks)
            return ConversionVerdict(parity, structure, metrics)
        quality = judge_quality(execution, variant.rule, self.tasks)
        return ConversionVerdict(None, structure, metrics, quality)

    def _tolerances(self) -> Tolerances:
        if self._atol is not None or self._rtol is not None:
            return given_tolerances(self.reference, self._atol, self._rtol)
        if self._exact is None:
            exact = float64_copy(self._compressed.network)
            self._exact = _predict_all(exact, self.probes, self._limit)
        return derive_tolerances(self.reference, self._exact)


def _predict_all(
    network: Network, probes: Sequence[Probe], limit: int | None = None
) -> Predictions:
    runner = network.runner()
    return {probe.name: predict(runner, probe, limit) for probe in probes}
