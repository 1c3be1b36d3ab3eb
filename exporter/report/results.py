"""What a run found, as frozen dataclasses of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.benchmark import LatencyPair
from exporter.card import ModelCard
from exporter.formats.base import Artifact
from exporter.formats.variants import FLOAT32
from exporter.lowrank.ranks.policy import LayerPlan
from exporter.quantization.gauge import GaugeReport
from exporter.quantization.granularity import GranularityTrial
from exporter.recipe import Recipe
from exporter.training.adaptive import Adaptation
from exporter.training.loop import History
from exporter.training.reference import Training
from exporter.verification.compression import CompressionVerdict
from exporter.verification.verifier import ConversionVerdict

EXIT_PASSED = 0
EXIT_REJECTED = 1
EXIT_NOT_CONVERTED = 3

ENERGIES = (0.9, 0.95, 0.99, 0.999)
"""Parts of the energy whose ranks are shown."""

SPECTRUM_POINTS = 16


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
    trials: tuple[GranularityTrial, ...] = ()
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
class Budget:
    """A limit, and what came of it.

    Attributes:
        goal: The field of the recipe: ``max_params``, ``max_macs``, ``max_size`` (bytes),
            ``max_latency`` (seconds) or ``max_drop`` (accuracy, 0 to 1).
        limit: What was asked for.
        reached: What the compressed model, or the worst of the artifacts, takes.
    """

    goal: str
    limit: float
    reached: float

    @property
    def held(self) -> bool:
        """Whether the limit is kept."""
        return self.reached <= self.limit


@dataclass(frozen=True)
class KernelInspection:
    """One kernel, or a layer that has none to factorize.

    Attributes:
        name: As in a rank plan.
        kind: The layer's Keras class name.
        shape: (m, n) of the matrix; None if the layer cannot be factorized.
        params: Parameters, biases included.
        macs: Multiply-accumulates of one call on one sample; None if the layer cannot be
            factorized.
        break_even_rank: From which on factors are no smaller; None likewise.
        effective_ranks: The rank that keeps each of ``ENERGIES``; None likewise.
        spectrum: Singular values over the largest one, at ``SPECTRUM_POINTS`` evenly spaced ranks;
            of the outputs where calibration data were given. None likewise.
        reason: Why it cannot be factorized; empty if it can.
    """

    name: str
    kind: str
    shape: tuple[int, int] | None
    params: int
    macs: int | None
    break_even_rank: float | None
    effective_ranks: tuple[int, ...] | None
    spectrum: tuple[float, ...] | None
    reason: str


@dataclass(frozen=True)
class PolicyPreview:
    """What one way of choosing ranks would do.

    Attributes:
        option: As on the command line.
        params: Parameters of the model.
        ranks: The rank of each kernel that would be factorized, by name.
        error: Why it cannot be done; None if it can.
    """

    option: str
    params: int | None
    ranks: dict[str, int]
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    Attributes:
        model_name: Name of the Keras model.
        data_aware: Whether spectra are those of outputs on calibration data, or of weights.
        params: Parameters of the model.
        macs: Its multiply-accumulates for one sample.
        kernels: In the order of the model.
        policies: Ways of choosing ranks.
    """

    model_name: str
    data_aware: bool
    params: int
    macs: int
    kernels: tuple[KernelInspection, ...]
    policies: tuple[PolicyPreview, ...]


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What compressing a model came to.

    Attributes:
        model_name: Name of the Keras model.
        output: Folder that was written.
        training: How the reference MLP was trained; None if a model was given.
        finetuning: How the compressed model was fine-tuned; None if it was not.
        layers: The layers with weights; their errors are those of the cut, before fine-tuning.
        before: The baseline.
        after: The compressed model.
        seconds: What it took.
    """

    model_name: str
    output: Path
    training: Training | None
    finetuning: FineTuningReport | None
    layers: tuple[LayerReport, ...]
    before: Totals
    after: Totals
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report(CompressionReport):
    """All that a run found.

    Attributes:
        recipe: What was asked for.
        card: What artifacts tell of the model.
        data_notes: Choices made in reading the data.
        samples: How many samples each part of the data has.
        budget: What was to be held, and what came of it; None if the ranks were given.
        compression: Compressed model against baseline.
        artifacts: One entry a format and variant asked for.
        versions: Of Python and the libraries.
    """

    recipe: Recipe
    card: ModelCard
    data_notes: tuple[str, ...]
    samples: Mapping[str, int]
    budget: Budget | None
    compression: CompressionVerdict
    artifacts: tuple[ArtifactReport, ...]
    versions: Mapping[str, str]

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
