"""What a run found, as frozen dataclasses of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.baseline import Training
from exporter.benchmark import LatencyPair
from exporter.budgets import Budget
from exporter.card import ModelCard
from exporter.formats.base import Artifact
from exporter.formats.variants import FLOAT32
from exporter.lowrank.ranks.policy import LayerPlan
from exporter.quantization.gauge import GaugeReport
from exporter.quantization.granularity import Trial
from exporter.recipe.recipe import Recipe
from exporter.training.adaptive import Adaptation
from exporter.training.loop import History
from exporter.verification.compression import CompressionVerdict
from exporter.verification.verifier import ConversionVerdict

EXIT_PASSED = 0
EXIT_REJECTED = 1
EXIT_NOT_CONVERTED = 3


@dataclass(frozen=True)
class LayerReport:
    """One layer of the plan and, if it was factorized, what that discarded.

    Attributes:
        plan: What became of the layer.
        discarded_energy: Part of the squared error norm that is left out: of the outputs, weighted
            by the loss gradient if it was gathered, where calibration data cut the kernel, and of
            the kernel's elements otherwise; None if dense.
        relative_error: Its square root; None if dense.
        data_aware: Whether calibration data cut the kernel; None if dense.
    """

    plan: LayerPlan
    discarded_energy: float | None = None
    relative_error: float | None = None
    data_aware: bool | None = None


@dataclass(frozen=True)
class ArtifactReport:
    """One artifact.

    Attributes:
        format: Its format.
        variant: Its numeric variant.
        artifact: What was written; None if the converter failed.
        conversion: The verdict; None if the converter failed.
        accepted: Whether it and the compression passed; otherwise it is in ``rejected/``.
        error: What the converter said.
        baseline_size: Bytes of the baseline in the same format, in float32.
        latency: Baseline, in float32, and compressed model in the same runtime.
        trials: How its weights might have been quantized, the way that was chosen first; empty if
            they were not.
        gauge: Which of the factors of the same products it was made of; None where they are those
            that were cut.
        comparison_error: Why baseline size or latency are None: the baseline did not convert, or a
            runtime could not run it.
    """

    format: str
    variant: str
    artifact: Artifact | None = None
    conversion: ConversionVerdict | None = None
    accepted: bool = False
    error: str | None = None
    baseline_size: int | None = None
    latency: LatencyPair | None = None
    trials: tuple[Trial, ...] = ()
    gauge: GaugeReport | None = None
    comparison_error: str | None = None

    @property
    def label(self) -> str:
        """Name of the file, or of what was not converted."""
        if self.artifact is not None:
            return self.artifact.path.name
        return self.format if self.variant == FLOAT32 else f"{self.format} {self.variant}"

    @property
    def ratio(self) -> float | None:
        """Size of the baseline / size of this artifact."""
        if self.artifact is None or self.baseline_size is None:
            return None
        return self.baseline_size / self.artifact.size


@dataclass(frozen=True)
class FineTuningReport:
    """How the compressed model was fine-tuned.

    Attributes:
        phases: In order.
        at_full_rank: Kernels that the projected training did not truncate, but were cut afterwards.
        adaptation: How ranks were chosen anew by trials; None if they were not.
    """

    phases: tuple[History, ...]
    at_full_rank: tuple[str, ...]
    adaptation: Adaptation | None


@dataclass(frozen=True)
class Totals:
    """Sums over a model.

    Attributes:
        params: Parameters, biases included.
        macs: Multiply-accumulates for one sample.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Report:
    """All that a run found.

    Attributes:
        recipe: What was asked for.
        model_name: Name of the Keras model.
        output: Folder that was written.
        card: What artifacts tell of the model.
        data_notes: Choices made in reading the data.
        samples: How many samples each part of the data has.
        training: How the reference MLP was trained; None if a model was given.
        finetuning: How the compressed model was fine-tuned; None if it was not.
        layers: The layers with weights; their errors are those of the cut, before fine-tuning.
        before: The baseline.
        after: The compressed model.
        budget: What was to be held, and what came of it; None if the ranks were given.
        compression: Compressed model against baseline.
        artifacts: One entry a format and variant asked for.
        versions: Of Python and the libraries.
        seconds: What the run took.
    """

    recipe: Recipe
    model_name: str
    output: Path
    card: ModelCard
    data_notes: tuple[str, ...]
    samples: Mapping[str, int]
    training: Training | None
    finetuning: FineTuningReport | None
    layers: tuple[LayerReport, ...]
    before: Totals
    after: Totals
    budget: Budget | None
    compression: CompressionVerdict
    artifacts: tuple[ArtifactReport, ...]
    versions: Mapping[str, str]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every artifact was written and passed."""
        return self.exit_code == EXIT_PASSED

    @property
    def exit_code(self) -> int:
        """0: all passed; 1: a verdict failed; 3: a conversion failed."""
        if any(artifact.error is not None for artifact in self.artifacts):
            return EXIT_NOT_CONVERTED
        held = self.budget is None or self.budget.held
        accepted = all(artifact.accepted for artifact in self.artifacts)
        passed = held and self.compression.passed and accepted
        return EXIT_PASSED if passed else EXIT_REJECTED
