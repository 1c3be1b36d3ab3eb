"""The run: Recipe, data, baseline, low rank, training, formats, verification, benchmark, report."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exporter.commands.budgets import accuracy_drop
from exporter.commands.exports import Exports
from exporter.commands.prepare import Job, prepare
from exporter.commands.weights import Weights, compute_weights, versions
from exporter.data import Dataset
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.output import staged_output
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe
from exporter.report.manifest import write_manifest
from exporter.report.results import ArtifactReport, Budget, Report
from exporter.training.distribution import is_chief, strategy_for


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
        model: A built Keras model, in place of ``recipe.source.model``.
        dataset: What ``load_dataset`` returned, in place of ``recipe.source.data``.
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
    strategy = strategy_for(recipe.tuning.distribute)
    if not is_chief(strategy):
        raise RecipeError("Only the first worker of a cluster writes; the others call run_worker.")
    job = prepare(recipe, model, dataset, loss)
    with (
        staged_output(job.output, job.entries, force=recipe.export.force) as staging,
        tempfile.TemporaryDirectory(prefix="exporter-") as scratch,
    ):
        weights = compute_weights(job, strategy, progress)
        weights.save(staging)
        exports = Exports(job, weights, staging, Path(scratch))
        artifacts = []
        with progress.track("Exporting and verifying", len(recipe.artifacts)) as advance:
            for number, (name, variant) in enumerate(recipe.artifacts):
                advance(number, f"{name}, {variant}")
                artifacts.append(exports.write(FORMATS[name], variant))
            advance(len(recipe.artifacts), "done")
        report = Report(
            recipe=recipe,
            output=job.output,
            card=job.card,
            data_notes=job.dataset.notes,
            samples=_sample_counts(job.dataset),
            budget=_budget(job, weights, artifacts),
            compression=exports.compression,
            artifacts=tuple(artifacts),
            versions=versions(recipe.export.formats),
            seconds=time.perf_counter() - start,
            **weights.figures(),
        )
        write_manifest(report, staging)
    weights.discard_checkpoints()
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

    All arguments are those of the first worker, which calls ``run``.

    Raises:
        InputError: If the recipe, the model or the data cannot be used.
    """
    strategy = strategy_for(recipe.tuning.distribute)
    job = prepare(recipe, model, dataset, loss, writes=False)
    compute_weights(job, strategy, progress or Silent())


def _budget(job: Job, weights: Weights, artifacts: Sequence[ArtifactReport]) -> Budget | None:
    """Holds what came out against the recipe's budget."""
    goal, after = job.recipe.goal, weights.compressed.network
    written = [item for item in artifacts if item.artifact is not None]
    figures: dict[str, Callable[[], float]] = {
        "max_params": lambda: after.params,
        "max_macs": lambda: after.macs,
        "max_size": lambda: max((a.artifact.size for a in written if a.artifact), default=0),
        "max_latency": lambda: max(
            (a.latency.compressed.p50 for a in written if a.latency), default=math.inf
        ),
        "max_drop": lambda: accuracy_drop(weights.baseline, after, job.dataset),
    }
    if goal.kind not in figures:
        return None
    return Budget(goal.kind, getattr(goal, goal.kind), figures[goal.kind]())


def _sample_counts(dataset: Dataset) -> dict[str, int]:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: len(part) for name, part in parts.items() if part is not None}
