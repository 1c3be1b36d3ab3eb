"""The run: Recipe, data, baseline, low rank, training, formats, verification, benchmark, report."""

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.commands.artifact import Exports
from exporter.commands.budgets import accuracy_drop
from exporter.commands.compress import carry_out
from exporter.commands.prepare import Job, prepare
from exporter.data import Dataset
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Compressed, Engine
from exporter.output import (
    BASELINE_FILE,
    CACHE,
    COMPRESSED_FILE,
    CURVES_FILE,
    TRUNCATED_FILE,
    UPDATED_FILE,
    staged_output,
)
from exporter.progress import Progress, Silent
from exporter.recipe.cutting import options_for
from exporter.recipe.recipe import Recipe
from exporter.report.curves import draw_curves
from exporter.report.manifest import write_manifest
from exporter.report.results import (
    ArtifactReport,
    Budget,
    FineTuningReport,
    LayerReport,
    Report,
    Totals,
)
from exporter.training.distribution import is_chief, strategy_for
from exporter.training.finetune import FineTuned, FineTuner
from exporter.training.reference import Training, train_reference

_NOT_TRAINED_BY = (
    "model",
    "formats",
    "quantize",
    "io_type",
    "granularity",
    "ranges",
    "gauge",
    "output",
    "force",
    "resume",
    "atol",
    "rtol",
    "opset",
    "labels",
    "description",
)
"""Fields of the recipe that the trained weights do not depend on, or that the weights stand for."""

_LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")


def run(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    loss: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Carries out a recipe: compresses, exports, verifies, measures, and writes the folder.

    Args:
        recipe: What to do.
        model: A built Keras model, in place of ``recipe.model``.
        dataset: What ``load_dataset`` returned, in place of ``recipe.data``.
        loss: What fine-tuning minimizes, as for ``keras.Model.compile``; by default what the model
            was compiled with, or what suits its outputs.
        progress: Is told what goes on; silent by default.

    Returns:
        The report, which is in ``manifest.json`` as well. A verdict that failed is in it, and a
        converter that failed; neither raises.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used; nothing
            that was in the folder is changed.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    strategy = strategy_for(recipe.distribute)
    if not is_chief(strategy):
        raise RecipeError("Only the first worker of a cluster writes; the others call run_worker.")
    job = prepare(recipe, model, dataset, loss)
    with (
        staged_output(job.output, job.entries, force=recipe.force) as staging,
        tempfile.TemporaryDirectory(prefix="exporter-") as scratch,
    ):
        trained = _train(job, strategy, progress)
        baseline, compressed, tuned = trained.baseline, trained.compressed, trained.tuned
        if job.trained_here:
            baseline.save(staging / BASELINE_FILE)
        compressed.network.save(staging / COMPRESSED_FILE)
        finetuning = None if tuned is None else _save_tuned(tuned, staging)
        exports = Exports(
            recipe,
            job.dataset,
            baseline,
            compressed,
            job.card,
            samples=job.samples,
            staging=staging,
            output=job.output,
            scratch=Path(scratch),
        )
        artifacts = []
        with progress.track("Exporting and verifying", len(recipe.artifacts)) as advance:
            for number, (name, variant) in enumerate(recipe.artifacts):
                advance(number, f"{name}, {variant}")
                artifacts.append(exports.carry_out(FORMATS[name], variant))
            advance(len(recipe.artifacts), "done")
        after = Totals(compressed.network.params, exports.verifier.macs)
        report = Report(
            recipe=recipe,
            model_name=baseline.name,
            output=job.output,
            card=job.card,
            data_notes=job.dataset.notes,
            samples=_sample_counts(job.dataset),
            training=trained.training,
            finetuning=finetuning,
            layers=_layer_reports(compressed),
            before=Totals(baseline.params, baseline.macs),
            after=after,
            budget=_budget(job, baseline, compressed.network, after, artifacts),
            compression=exports.compression,
            artifacts=tuple(artifacts),
            versions=_versions(recipe.formats),
            seconds=time.perf_counter() - start,
        )
        write_manifest(report, staging)
    if trained.checkpoints is not None and tuned is not None and not tuned.interrupted:
        shutil.rmtree(trained.checkpoints, ignore_errors=True)
    return report


def run_worker(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    loss: Any = None,
    progress: Progress | None = None,
) -> None:
    """Takes part in the training of a cluster, as a worker other than the first; writes nothing.

    Args:
        recipe: The same as in the first worker, which calls ``run``.
        model: Likewise.
        dataset: Likewise.
        loss: Likewise.
        progress: Is told what goes on; silent by default.

    Raises:
        InputError: If the recipe, the model or the data cannot be used.
    """
    strategy = strategy_for(recipe.distribute)
    _train(prepare(recipe, model, dataset, loss, writes=False), strategy, progress or Silent())


@dataclass(frozen=True)
class _Trained:
    """All that has weights, and where the checkpoints of their training are."""

    baseline: Network
    training: Training | None
    compressed: Compressed
    tuned: FineTuned | None = None
    checkpoints: Path | None = None


def _train(job: Job, strategy: Any, progress: Progress) -> _Trained:
    """Does all that computes weights: baseline, cut, fine-tuning."""
    recipe = job.recipe
    for note in job.dataset.notes:
        progress.note(note)
    baseline, training = job.network, None
    if job.trained_here:
        model, training = train_reference(
            job.network.model, job.dataset, seed=recipe.seed, cache=CACHE, progress=progress
        )
        baseline = Network(model)
    engine, compressed = _compress(job, baseline, progress)
    if not recipe.finetune:
        return _Trained(baseline, training, compressed)
    checkpoints = _checkpoints(job, baseline)
    if not recipe.resume and is_chief(strategy):
        shutil.rmtree(checkpoints, ignore_errors=True)
    tuner = FineTuner(
        engine,
        job.dataset,
        recipe,
        strategy=strategy,
        progress=progress,
        loss=job.loss,
        checkpoints=checkpoints,
    )
    tuned = tuner.run(compressed)
    return _Trained(baseline, training, tuned.compressed, tuned, checkpoints)


def _checkpoints(job: Job, baseline: Network) -> Path:
    """Names the folder after all that makes the result, so that no other run goes on from it."""
    options = job.recipe.to_dict()
    for name in _NOT_TRAINED_BY:
        del options[name]
    ingredients = hashlib.sha256(json.dumps([options, _versions()], sort_keys=True).encode())
    ingredients.update(job.dataset.digest.encode())
    for weight in baseline.model.get_weights():
        ingredients.update(weight.tobytes())
    return CACHE / f"finetune-{ingredients.hexdigest()[:16]}"


def _save_tuned(tuned: FineTuned, staging: Path) -> FineTuningReport:
    for model, name in ((tuned.truncated, TRUNCATED_FILE), (tuned.updated, UPDATED_FILE)):
        if model is not None:
            model.save(staging / name)
    report = FineTuningReport(tuned.histories, tuned.at_full_rank, tuned.adaptation)
    draw_curves(report.phases, staging / CURVES_FILE)
    return report


def _compress(job: Job, baseline: Network, progress: Progress) -> tuple[Engine, Compressed]:
    recipe, dataset = job.recipe, job.dataset
    calibration = calibration_from(baseline, dataset, recipe.calibration)
    if calibration is None and recipe.method != "svd":
        progress.note("No training data to calibrate by: kernels are cut by their weights alone")
    engine = Engine(baseline, calibration, options_for(recipe), progress)
    compressed = carry_out(engine, recipe, dataset, progress)
    if not compressed.factors:
        progress.note("No layer is factorized at this rank; the table of layers says why")
    return engine, compressed


def _budget(
    job: Job,
    baseline: Network,
    compressed: Network,
    after: Totals,
    artifacts: Sequence[ArtifactReport],
) -> Budget | None:
    """Holds what came out against the recipe's budget."""
    recipe, goal = job.recipe, job.recipe.goal
    written = [item for item in artifacts if item.artifact is not None]
    figures: dict[str, Callable[[], float]] = {
        "max_params": lambda: after.params,
        "max_macs": lambda: after.macs,
        "max_size": lambda: max((a.artifact.size for a in written if a.artifact), default=0),
        "max_latency": lambda: max(
            (a.latency.compressed.p50 for a in written if a.latency), default=math.inf
        ),
        "max_drop": lambda: accuracy_drop(baseline, compressed, job.dataset),
    }
    if goal not in figures:
        return None
    return Budget(goal, getattr(recipe, goal), figures[goal]())


def _layer_reports(compressed: Compressed) -> tuple[LayerReport, ...]:
    reports = []
    for plan in compressed.plan.layers:
        parts = compressed.factors.get(plan.name)
        if parts is None:
            reports.append(LayerReport(plan))
        else:
            reports.append(
                LayerReport(plan, parts.discarded_energy, parts.relative_error, parts.data_aware)
            )
    return tuple(reports)


def _sample_counts(dataset: Dataset) -> dict[str, int]:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: len(part) for name, part in parts.items() if part is not None}


def _versions(formats: Sequence[str] = ()) -> dict[str, str]:
    from exporter.version import __version__

    packages = [package for name in formats for package in FORMATS[name].extra.packages]
    libraries = {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *packages)}
    return {"python": platform.python_version(), "exporter": __version__, **libraries}
