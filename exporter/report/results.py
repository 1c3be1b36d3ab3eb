"""The findings of a run, as frozen dataclasses of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter.card import ModelCard
from exporter.data.metrics import is_better, loss_of
from exporter.errors import TrackingError
from exporter.formats.base import Artifact
from exporter.formats.variants import FLOAT32
from exporter.graph.channels import ChannelPlan
from exporter.lowrank.ranks.policy import LayerPlan
from exporter.options.groups import HERE
from exporter.options.rank import NO_RANK
from exporter.quantization.gauge import GaugeReport
from exporter.quantization.granularity import GranularityTrial
from exporter.recipe import Recipe
from exporter.screen import fits_screen
from exporter.targets.base import Cost
from exporter.targets.latency import Latency
from exporter.training.adaptive import Adaptation
from exporter.training.loop import History
from exporter.training.reference import Training
from exporter.verification.compression import CompressionVerdict
from exporter.verification.verdict import ConversionVerdict, Standing

ENERGIES = (0.9, 0.95, 0.99, 0.999)
"""Parts of the energy whose ranks are shown."""

SPECTRUM_POINTS = 16

LATENCY_NOISE = 1.05
"""Ratio of two latencies that timing cannot tell apart."""


@dataclass(frozen=True)
class LayerReport:
    """One layer of the plan, and the error of its truncation.

    Attributes:
        plan: The decision about the layer.
        discarded_energy: Relative squared error of the truncation; None if dense. It is that of
            the kernel; with calibration data that of the outputs, weighted by the loss gradient if
            it was gathered.
        relative_error: Its square root; None if dense.
        data_aware: Whether calibration data were used for the truncation; None if dense.
        cost_before: Cost of the whole layer on the target, in its unit; None if it is dense, or was
            not measured.
        cost_after: Cost of what stands in for it.
        measured_error: ``relative_error`` as it turned out, on test samples, with the weights as
            they are in the end; None if it is dense, or was not measured.
    """

    plan: LayerPlan
    discarded_energy: float | None = None
    relative_error: float | None = None
    data_aware: bool | None = None
    cost_before: float | None = None
    cost_after: float | None = None
    measured_error: float | None = None


@dataclass(frozen=True)
class LatencyPair:
    """Baseline and compressed model in the same runtime, timed in turns."""

    baseline: Latency
    compressed: Latency

    @property
    def speedup(self) -> float:
        """Ratio of the medians, baseline / compressed."""
        return self.baseline.p50 / self.compressed.p50


@dataclass(frozen=True)
class Alternative:
    """What a user would ship otherwise: the uncompressed network in the same format and variant.

    Attributes:
        size: Bytes, as of the artifact.
        standings: How its outputs stand to the baseline Keras model and the labels.
        validation: The same on validation data; empty without any.
        latency: Timed in turns with the artifact.
    """

    size: int
    standings: Mapping[str, Standing]
    validation: Mapping[str, Standing]
    latency: Latency


@dataclass(frozen=True)
class TargetCost:
    """What a call costs on the target of the recipe.

    Attributes:
        alternative: As of ``Alternative``; None where there is none.
    """

    target: str
    artifact: Cost
    alternative: Cost | None


@fits_screen
@dataclass(frozen=True)
class ArtifactReport:
    """One artifact.

    Attributes:
        artifact: The file; None, as the conversion is, if the converter failed.
        accepted: Whether it and the compression passed; otherwise it is in ``rejected/``.
        baseline_size: Size of the baseline in the same format, in float32, in bytes.
        latency: Baseline, in float32, and compressed model in the same runtime.
        validation: How its outputs stand to the baseline on validation data, by which it may be
            chosen among others; empty without such data, and if it was not compared.
        trials: The granularities of the weights that were compared, the chosen one first; empty if
            there was no choice.
        gauge: The factor pairs that were chosen for quantization; None if they were not changed.
        alternative: The uncompressed network in the same variant; None if nothing was factorized,
            or it could not be exported and run.
        target_cost: None if the recipe has no target, or the target cannot measure the format.
        comparison_error: Why baseline size, latency, alternative or target cost are None: the
            baseline did not convert, or a runtime could not run it.
    """

    format: str
    variant: str
    artifact: Artifact | None = None
    conversion: ConversionVerdict | None = None
    accepted: bool = False
    error: str | None = None
    baseline_size: int | None = None
    latency: LatencyPair | None = None
    validation: Mapping[str, Standing] = field(default_factory=dict)
    trials: tuple[GranularityTrial, ...] = ()
    gauge: GaugeReport | None = None
    alternative: Alternative | None = None
    target_cost: TargetCost | None = None
    comparison_error: str | None = None

    @property
    def is_dominated(self) -> bool:
        """Whether the alternative is no larger, no costlier and on every output no worse.

        Costs are those on the target, or latencies here without one.
        """
        other, latency, cost = self.alternative, self.latency, self.target_cost
        if other is None or latency is None or self.artifact is None or self.conversion is None:
            return False
        no_costlier = other.latency.p50 <= LATENCY_NOISE * latency.compressed.p50
        if cost is not None and cost.alternative is not None and cost.target != HERE:
            no_costlier = cost.alternative.value <= cost.artifact.value
        return (
            other.size <= self.artifact.size
            and no_costlier
            and not any(_is_better(*both) for both in self.standings.values())
        )

    @property
    def standings(self) -> dict[str, tuple[Standing, Standing]]:
        """How the artifact and its alternative stand, by the outputs that both have."""
        if self.conversion is None or self.alternative is None:
            return {}
        own, others = self.conversion.standings, self.alternative.standings
        return {name: (own[name], others[name]) for name in own if name in others}

    @property
    def label(self) -> str:
        """Name of the file, or format and variant if there is none."""
        if self.artifact is not None:
            return self.artifact.path.name
        return self.format if self.variant == FLOAT32 else f"{self.format} {self.variant}"

    @property
    def ratio(self) -> float | None:
        """Size of the baseline / size of this artifact."""
        if self.artifact is None or self.baseline_size is None:
            return None
        return self.baseline_size / self.artifact.size


def _is_better(one: Standing, other: Standing) -> bool:
    """Tells whether an output stands better by the first figure that both have.

    On other samples it may.
    """
    if one.samples != other.samples:
        return True
    if one.metric is not None and other.metric is not None:
        return is_better(one.metric, other.metric)
    if one.top1_agreement is not None and other.top1_agreement is not None:
        return one.top1_agreement > other.top1_agreement
    return one.snr_db > other.snr_db


@dataclass(frozen=True)
class FineTuningReport:
    """How the compressed model was fine-tuned.

    Attributes:
        phases: In order.
        at_full_rank: Kernels that the projected training left at full rank, cut afterwards.
        adaptation: The choice of new ranks by trials; None if the ranks were kept.
    """

    phases: tuple[History, ...]
    at_full_rank: tuple[str, ...]
    adaptation: Adaptation | None


@dataclass(frozen=True)
class Totals:
    """Parameters of a model, biases included, and multiply-accumulates for one sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class Budget:
    """A limit, and the figure that was reached.

    Attributes:
        goal: The field of the recipe: ``max_params``, ``max_macs``, ``max_size`` (bytes),
            ``max_latency`` (seconds), ``max_instructions`` or ``max_drop`` (accuracy, 0 to 1).
        reached: The figure of the compressed model, or of the worst artifact.
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
    """One kernel, or a layer without a kernel to factorize, whose optional fields are None.

    Attributes:
        kind: The layer's Keras class name.
        shape: (m, n) of the matrix.
        macs: Multiply-accumulates of one call on one sample.
        break_even_rank: The rank from which on factors are no smaller.
        effective_ranks: The rank that keeps each of ``ENERGIES``.
        spectrum: Singular values over the largest one, at ``SPECTRUM_POINTS`` evenly spaced ranks;
            those of the outputs if there are calibration data.
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
    """The effect of one rank policy, or the error that keeps it from being applied.

    Attributes:
        option: As on the command line.
        params: Parameters of the whole model.
        ranks: The rank of each kernel that would be factorized, by name.
    """

    option: str
    params: int | None
    ranks: dict[str, int]
    error: str | None = None


@fits_screen
@dataclass(frozen=True)
class Inspection:
    """The findings of an inspection; spectra are of outputs if ``data_aware``, else of weights."""

    model_name: str
    data_aware: bool
    params: int
    macs: int
    kernels: tuple[KernelInspection, ...]
    policies: tuple[PolicyPreview, ...]


def means_of(factorized: int, removed: int) -> str:
    """Names what a network was compressed by; empty if by nothing."""
    named = {"fewer channels": removed, "low rank": factorized}
    return " and ".join(name for name, count in named.items() if count)


_SINGLE_SAMPLE = (
    "The test part of the data has one sample: all that is said of accuracy rests on it. Give more."
)


@fits_screen
@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """The findings of a compression.

    Attributes:
        output: Folder that was written.
        training: How the reference MLP was trained; None if a model was given.
        finetuning: How the compressed model was fine-tuned; None if it was not.
        layers: The layers with weights; their errors are those before fine-tuning.
        channels: The channels that belong together, and how many of them stay; empty unless the
            recipe removes channels.
    """

    model_name: str
    output: Path
    training: Training | None
    finetuning: FineTuningReport | None
    layers: tuple[LayerReport, ...]
    before: Totals
    after: Totals
    seconds: float
    channels: tuple[ChannelPlan, ...] = ()

    @property
    def removed(self) -> int:
        """How many channels were removed, over all groups."""
        return sum(group.before - group.after for group in self.channels)

    @property
    def factorized(self) -> int:
        """How many kernels were factorized; none means that the model is as it was."""
        return sum(layer.plan.rank is not None for layer in self.layers)


@fits_screen
@dataclass(frozen=True, kw_only=True)
class Report(CompressionReport):
    """The findings of a run.

    Attributes:
        data_notes: Choices made in reading the data.
        samples: Number of samples in each part of the data.
        drawing_error: Why the report could not be drawn; None if it was, or was not asked for.
        tracking_error: Why MLflow did not take the run; None if it did, or was not asked to. It is
            no part of the manifest, which was written before.
        partial: Whether the run was interrupted, and ``artifacts`` are those that were ready.
        budget: The limit of the recipe; None if the ranks were given.
        artifacts: One entry for each format and variant.
        versions: Of Python and the libraries.
    """

    recipe: Recipe
    card: ModelCard
    data_notes: tuple[str, ...]
    samples: Mapping[str, int]
    drawing_error: str | None = None
    tracking_error: str | None = None
    partial: bool = False
    budget: Budget | None
    compression: CompressionVerdict
    artifacts: tuple[ArtifactReport, ...]
    versions: Mapping[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before shipping, one sentence each, with what to try next."""
        single = self.samples.get("test") == 1
        found = [_SINGLE_SAMPLE] if single else []
        if self.partial:
            count = len(self.recipe.artifacts)
            found.append(
                f"Interrupted: {len(self.artifacts)} of {count} artifacts are there; run again "
                "with --force for the others."
            )
        if self.tracking_error:
            found.append(self.tracking_error)
        if self.drawing_error:
            found.append(
                f"The report could not be drawn: {self.drawing_error} Try again: exporter report "
                f"{self.output}"
            )
        lost = [output for output in self.compression.outputs if output.is_large]
        if lost:
            names = ", ".join(output.output for output in lost)
            trainable = self.samples.get("train") and not self.finetuning
            tried = ["--finetune 10"] if trainable else []
            if self.recipe.goal.kind == "rank" and self.recipe.goal.rank != NO_RANK:
                part = self.after.params / max(1, self.before.params)
                tried.append(f"--max-params {part:.0%}, which layers share by what each loses,")
            kind = self.recipe.goal.kind.replace("_", "-")
            whole = self.recipe.goal.rank == NO_RANK
            tried += [f"a higher --{kind}"] if kind != "max-drop" and not whole else []
            tried += ["more --channels"] if self.removed else []
            advice = " or ".join([*tried, "--max-drop 1%"])
            means = means_of(self.factorized, self.removed) or "compression"
            found.append(f"By {means}, {names} lost much of what the baseline knows; try {advice}.")
        dominated = ", ".join(item.label for item in self.artifacts if item.is_dominated)
        if dominated:
            found.append(
                f"No smaller, faster or better than the uncompressed network in the same variant: "
                f"{dominated}. Ship that instead: --rank none."
            )
        dearer = [
            each.plan.name
            for each in self.layers
            if None not in (each.cost_before, each.cost_after)
            and (each.cost_after or 0) > (each.cost_before or 0)
        ]
        if dearer:
            target = self.recipe.goal.target
            found.append(
                f"On {target} these layers cost more factorized than whole: {', '.join(dearer)}. "
                f"They stay whole with --target {target} --max-drop 1%."
            )
        for item in self.artifacts:
            if item.conversion is None or item.conversion.quality is None:
                continue
            for output in self.compression.outputs:
                after = item.conversion.metrics.get(output.output)
                if output.compressed is None or after is None:
                    continue
                if output.is_large_loss(loss_of(output.compressed, after)):
                    found.append(
                        f"Quantization costs {item.label} much of {output.output}; try another "
                        "--quantize, such as dynamic."
                    )
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether every artifact was written and passed."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0: passed; 1: a verdict failed; 3: a conversion; 5: MLflow; 130: interrupted."""
        if self.partial:
            return 130
        if any(artifact.error is not None for artifact in self.artifacts):
            return 3
        held = self.budget is None or self.budget.held
        accepted = all(artifact.accepted for artifact in self.artifacts)
        if not (held and self.compression.passed and accepted):
            return 1
        return TrackingError.exit_code if self.tracking_error else 0
