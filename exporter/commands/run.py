"""The run: Recipe, data, baseline, low rank, training, formats, verification, benchmark, report."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.commands.alternative import Alternatives
from exporter.commands.artifact import ArtifactWriter
from exporter.commands.budgets import accuracy_drop
from exporter.commands.kept import discard
from exporter.commands.pictures import picture_run
from exporter.commands.prepare import Job, prepare
from exporter.commands.tracking import log_mlflow
from exporter.commands.weights import Weights, compute_weights, versions
from exporter.data import Array
from exporter.disk import disk_error, scratch_folder
from exporter.errors import ConversionError, RecipeError, Terminated, TrackingError, brief
from exporter.formats import FORMATS
from exporter.formats.base import Format, describe
from exporter.isolation import ChildError
from exporter.output import (
    PICTURES_FILE,
    RECIPE_FILE,
    REFERENCE_FILE,
    REJECTED,
    REPORT_FILES,
    UNCOMPRESSED,
    artifact_name,
    staged_output,
)
from exporter.progress import LOGGER, Logged, Progress
from exporter.recipe import Recipe
from exporter.recipes import recipe_text
from exporter.report.manifest import manifest_of, write_manifest
from exporter.report.page.drawing import draw_report
from exporter.report.results import (
    Alternative,
    ArtifactReport,
    Budget,
    LatencyPair,
    Report,
    TargetCost,
)
from exporter.targets import TARGETS
from exporter.targets.base import Subject
from exporter.targets.latency import measure_latency
from exporter.training.distribution import is_chief, strategy_for
from exporter.verification.compression import CompressionVerdict, judge_compression
from exporter.verification.verdict import ConversionVerdict, Standing
from exporter.verification.verifier import Verifier


def run(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    loss: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Carries out a recipe: compresses, exports, verifies, measures, and writes the folder.

    Args:
        recipe: What to do.
        model: A built Keras model, in place of ``recipe.source.model``.
        dataset: What ``load_dataset`` returned or takes, in place of ``recipe.source.data``.
        loss: What fine-tuning minimizes, as for ``keras.Model.compile``; by default what the model
            was compiled with, or what suits its outputs.
        progress: Is told what goes on; by default it is logged.

    Returns:
        The report, which is in ``manifest.json`` as well. A verdict that failed is in it, and a
        converter that failed; neither raises.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used; nothing
            that was in the folder is changed.
        KeyboardInterrupt: If Ctrl-C is pressed before an artifact has passed. Later, the report is
            ``partial`` and the folder holds what was ready.
    """
    start = time.perf_counter()
    progress = progress or Logged()
    strategy = strategy_for(recipe.tuning.distribute)
    if not is_chief(strategy):
        raise RecipeError("Only the first worker of a cluster writes; the others call run_worker.")
    job = prepare(recipe, model, dataset, loss, progress=progress)
    with (
        staged_output(
            job.output, job.entries, force=recipe.export.force, progress=progress
        ) as staging,
        scratch_folder() as scratch,
    ):
        weights = compute_weights(job, strategy, progress, pictured=recipe.export.report)
        weights.save(staging)
        exports = _Exports(job, weights, staging, scratch)
        artifacts = exports.write_all(progress)
        report = Report(
            recipe=recipe,
            output=job.output,
            card=job.card,
            data_notes=job.dataset.notes,
            samples={name: len(part) for name, part in job.dataset.parts.items()},
            partial=len(artifacts) < len(recipe.artifacts),
            budget=_budget(job, weights, artifacts),
            compression=exports.compression,
            artifacts=tuple(artifacts),
            versions=versions(recipe.export.formats),
            seconds=time.perf_counter() - start,
            **weights.figures(),
        )
        exports.save_reference(staging / REFERENCE_FILE, artifacts)
        objects = {"model": model, "data": dataset, "loss": loss}
        given = ", ".join(name for name, value in objects.items() if value is not None)
        notes = [f"Of Python, and not in here: the {given} of the run."] if given else []
        text = recipe_text(recipe, "Runs again by: exporter --recipe recipe.yaml", *notes)
        (staging / RECIPE_FILE).write_text(text, encoding="utf-8")
        if recipe.export.report:
            report = exports.draw(report, progress)
        write_manifest(manifest_of(report, staging), staging)
    if not report.partial:
        weights.discard_checkpoints()
    if recipe.export.mlflow:
        report = _logged(report, recipe.export.mlflow, progress)
    for warning in report.warnings:
        LOGGER.warning("%s", warning)
    return report


def _logged(report: Report, experiment: str, progress: Progress) -> Report:
    """Logs a run that has been published; if that fails, the report tells why."""
    try:
        with progress.track("Logging to MLflow", 1):
            log_mlflow(report.output, experiment)
    except TrackingError as error:
        return replace(report, tracking_error=str(error))
    except (KeyboardInterrupt, Terminated):
        return replace(report, tracking_error="Interrupted while it was logged to MLflow.")
    return report


def run_worker(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    loss: Any = None,
    progress: Progress | None = None,
) -> None:
    """Takes part in the training of a cluster, as a worker other than the first; writes nothing.

    All arguments are those of the first worker, which calls ``run``.

    Raises:
        InputError: If the recipe, the model or the data cannot be used.
    """
    strategy = strategy_for(recipe.tuning.distribute)
    job = prepare(recipe, model, dataset, loss, writes=False)
    compute_weights(job, strategy, progress or Logged())


class _Exports:
    """Exports, verifies and measures the artifacts of one run; rejects what does not pass."""

    def __init__(self, job: Job, weights: Weights, staging: Path, scratch: Path) -> None:
        # Both models predict here what artifacts will be compared with.
        recipe, compressed = job.recipe, weights.compressed
        self._job, self._weights, self._staging, self._scratch = job, weights, staging, scratch
        self._writer = ArtifactWriter(recipe, compressed, job.samples, job.card)
        limits = recipe.verification
        self._verifier = Verifier(
            compressed,
            job.dataset,
            folder=scratch,
            baseline=weights.baseline,
            atol=limits.atol,
            rtol=limits.rtol,
            seed=recipe.source.seed,
            calibration=recipe.source.calibration,
        )
        kept = staging if recipe.export.keep_baseline else scratch
        self._alternatives = Alternatives(job, weights.baseline, kept / UNCOMPRESSED, scratch)
        first = self._verifier.probes[0]
        self.compression: CompressionVerdict = judge_compression(
            self._verifier.baseline,
            self._verifier.reference[first.name],
            first.labels,
            self._verifier.tasks,
            limits.max_loss,
        )

    def write_all(self, progress: Progress) -> list[ArtifactReport]:
        """Writes the artifacts of the recipe; if it is interrupted, those until then.

        Raises:
            KeyboardInterrupt: If it was interrupted, and none has passed.
            Terminated: Likewise.
        """
        chosen = [(FORMATS[name], variant) for name, variant in self._job.recipe.artifacts]
        reports: list[ArtifactReport] = []
        try:
            with progress.track("Exporting and verifying", len(chosen)) as advance:
                for number, (fmt, variant) in enumerate(chosen):
                    advance(number, f"{fmt.name}, {variant}")
                    reports.append(self.write(fmt, variant))
                advance(len(chosen), "done")
        except (KeyboardInterrupt, Terminated):
            if not any(report.accepted for report in reports):
                raise
            for fmt, variant in chosen[len(reports) :]:
                self._discard(artifact_name(fmt, variant))
            progress.note(
                f"Interrupted: keeps {len(reports)} of {len(chosen)} artifacts; once more, and "
                "none is kept"
            )
        return reports

    def _discard(self, name: str) -> None:
        """Removes an artifact that may be half written."""
        for path in (self._staging / name, self._staging / REJECTED / name):
            discard(path)

    def write(self, fmt: Format, variant: str) -> ArtifactReport:
        """Writes, verifies and measures an artifact."""
        path = self._staging / artifact_name(fmt, variant)
        job = self._job
        try:
            trials = self._writer.write(fmt, variant, path, self._scratch)
        except ConversionError as error:
            return ArtifactReport(fmt.name, variant, error=str(error))
        network = self._weights.compressed.network
        artifact = describe(fmt, variant, path, network)
        conversion = self._verifier.verify(artifact)
        report = ArtifactReport(
            fmt.name,
            variant,
            artifact,
            conversion,
            accepted=conversion.passed
            and self.compression.passed
            and not any(map(self.compression.exceeds, self._losses(conversion).values())),
            trials=trials,
            gauge=self._writer.gauge(fmt.variant(variant)),
        )
        try:
            if report.accepted:
                found = self._verifier.validated(artifact, network)
                report = replace(report, validation=found)
            plain = self._alternatives.write(fmt)
            report = replace(report, baseline_size=fmt.size(plain))
            report = self._compared(report, fmt, plain, path)
            report = self._costed(report, fmt, path)
        except (ConversionError, ChildError) as error:
            # The baseline is no product of this run: it is only compared with.
            report = replace(report, comparison_error=str(error))
        if not report.accepted:
            (self._staging / REJECTED).mkdir(exist_ok=True)
            path = path.rename(self._staging / REJECTED / path.name)
        final = job.output / path.relative_to(self._staging)
        return replace(report, artifact=replace(artifact, path=final))

    def save_reference(self, file: Path, reports: Sequence[ArtifactReport]) -> None:
        """Writes what others can hold the artifacts against, without the model."""
        exact = any(FORMATS[r.format].variant(r.variant).rule is None for r in reports)
        self._verifier.stored_reference(exact=exact).save(file)

    def draw(self, report: Report, progress: Progress) -> Report:
        """Draws the report; if that fails, or is interrupted, the run is published without it."""
        try:
            with progress.track("Drawing the report", 1):
                pictures = picture_run(
                    self._weights.pictures, self._verifier, self._job.card.normalization
                )
                pictures.save(self._staging / PICTURES_FILE)
                draw_report(manifest_of(report, self._staging), pictures, self._staging)
                return report
        except (KeyboardInterrupt, Terminated):
            why = "it was interrupted."
        except Exception as error:
            if disk_error(error):
                raise
            why = f"{type(error).__name__}: {brief(error)}"
        for name in REPORT_FILES:
            if name != PICTURES_FILE:
                discard(self._staging / name)
        return replace(report, drawing_error=why)

    def _losses(self, conversion: ConversionVerdict) -> dict[str, float]:
        """Returns what labelled outputs of an artifact lost against the baseline."""
        return {name: each.loss for name, each in conversion.standings.items() if each.metric}

    @property
    def _single_batch(self) -> dict[str, Array]:
        """The inputs of one call."""
        single = next(probe for probe in self._verifier.probes if probe.name == "single")
        return {name: array[: single.batch_size] for name, array in single.inputs.items()}

    def _compared(
        self, report: ArtifactReport, fmt: Format, plain: Path, path: Path
    ) -> ArtifactReport:
        """Adds times, beside the baseline in float32, and what a user would ship otherwise."""
        standings, validation = dict[str, Standing](), dict[str, Standing]()
        other = plain
        if not self._weights.compressed.is_whole:
            try:
                standings, validation = self._alternatives.standings(
                    fmt, report.variant, self._verifier
                )
                other = self._alternatives.write(fmt, report.variant)
            except (ConversionError, ChildError) as error:
                report = replace(report, comparison_error=str(error))
        files = list(dict.fromkeys([plain, path, other]))
        latencies = measure_latency(fmt, files, self._single_batch, self._scratch)
        times = dict(zip(files, latencies, strict=True))
        report = replace(report, latency=LatencyPair(times[plain], times[path]))
        if standings:
            alternative = Alternative(fmt.size(other), standings, validation, times[other])
            report = replace(report, alternative=alternative)
        return report

    def _costed(self, report: ArtifactReport, fmt: Format, path: Path) -> ArtifactReport:
        """Adds the costs on the target."""
        target = TARGETS.get(self._job.recipe.goal.target or "")
        if target is None or not fmt.is_measured(target.name, report.variant):
            return report
        subjects = [Subject(path, self._weights.compressed.network)]
        if report.alternative:
            other = self._alternatives.write(fmt, report.variant)
            subjects.append(Subject(other, self._alternatives.network))
        own, *others = target.measure(fmt, subjects, self._single_batch)
        cost = TargetCost(target.name, own, others[0] if others else None)
        return replace(report, target_cost=cost)


def _budget(job: Job, weights: Weights, artifacts: Sequence[ArtifactReport]) -> Budget | None:
    """Holds what came out against the recipe's budget."""
    goal, after = job.recipe.goal, weights.compressed.network
    figures: dict[str, Callable[[], float]] = {
        "max_params": lambda: after.params,
        "max_macs": lambda: after.macs,
        "max_size": lambda: max((a.artifact.size for a in artifacts if a.artifact), default=0),
        "max_latency": lambda: max(
            (a.latency.compressed.p50 for a in artifacts if a.latency), default=math.inf
        ),
        "max_instructions": lambda: max(
            (a.target_cost.artifact.value for a in artifacts if a.target_cost), default=math.inf
        ),
        "max_drop": lambda: accuracy_drop(weights.baseline, after, job.dataset),
    }
    if goal.kind not in figures:
        return None
    before = weights.baseline
    limit = goal.limit(before.params, before.macs)
    return Budget(goal.kind, limit, figures[goal.kind]())
