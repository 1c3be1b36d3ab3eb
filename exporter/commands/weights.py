"""Computes the weights of a run: trains the reference MLP, factorizes, fine-tunes."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter import plugins
from exporter.commands.division import DIVISIONS, compressed_by
from exporter.commands.pictures import LayerPictures, picture_layers
from exporter.commands.prepare import Job
from exporter.commands.trials import Trials
from exporter.disk import scratch_folder
from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.graph.saving import save_model
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.ranks.policy import RankPlan
from exporter.options.groups import Cut
from exporter.options.rank import NO_RANK
from exporter.output import (
    BASELINE_FILE,
    CACHE,
    COMPRESSED_FILE,
    CURVES_FILE,
    PLAN_FILE,
    TRUNCATED_FILE,
    UPDATED_FILE,
)
from exporter.progress import Progress, Silent
from exporter.report.curves import draw_curves
from exporter.report.results import FineTuningReport, LayerReport, Totals
from exporter.targets import TARGETS
from exporter.targets.base import Cost
from exporter.training.distribution import is_chief
from exporter.training.finetune import FineTuned, FineTuner
from exporter.training.reference import Training, train_reference
from exporter.version import __version__

_LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class Weights:
    """The models of a run, with their weights.

    Attributes:
        baseline: The model that was compressed.
        training: How it was trained, if that was done here.
        cut: How kernels were factorized, and what was folded before.
        compressed: The model to be exported.
        tuned: What fine-tuning yielded; None if there was none.
        checkpoints: Folder of the checkpoints of fine-tuning.
        layer_costs: What each factorized layer cost on the target whole, and costs now, by name.
        pictures: What the report draws of the layers, if it is asked for.
    """

    baseline: Network
    training: Training | None
    cut: Cut
    compressed: Compressed
    tuned: FineTuned | None = None
    checkpoints: Path | None = None
    layer_costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pictures: LayerPictures = field(default_factory=LayerPictures)

    def save(self, staging: Path) -> None:
        """Writes the models, and the curves of their training, to a folder."""
        tuned = self.tuned
        models = {
            BASELINE_FILE: self.baseline.model if self.training else None,
            COMPRESSED_FILE: self.compressed.model,
            TRUNCATED_FILE: tuned and tuned.truncated,
            UPDATED_FILE: tuned and tuned.updated,
        }
        for name, model in models.items():
            if model is None or save_model(model, staging / name) or name != COMPRESSED_FILE:
                continue
            layers = [
                {"name": each.name, "kind": each.kind, "rank": each.rank}
                for each in self.compressed.plan.layers
            ]
            shapes = [list(weight.shape) for weight in model.weights]
            channels = [asdict(group) for group in self.compressed.channels]
            plan = {
                "cut": asdict(self.cut),
                "channels": channels,
                "layers": layers,
                "shapes": shapes,
            }
            (staging / PLAN_FILE).write_text(json.dumps(plan, indent=2))
        if tuned is not None:
            draw_curves(tuned.histories, staging / CURVES_FILE)

    def discard_checkpoints(self) -> None:
        """Removes the checkpoints of a training that came to its end."""
        if self.checkpoints is not None and self.tuned and not self.tuned.interrupted:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def figures(self) -> dict[str, Any]:
        """Returns what a report tells of the weights, by the name of its field."""
        tuned, compressed = self.tuned, self.compressed
        return {
            "model_name": self.baseline.name,
            "training": self.training,
            "finetuning": tuned
            and FineTuningReport(tuned.histories, tuned.at_full_rank, tuned.adaptation),
            "channels": compressed.channels,
            "layers": tuple(self._layer_reports()),
            "before": Totals(self.baseline.params, self.baseline.macs),
            "after": Totals(compressed.network.params, compressed.network.macs),
        }

    def _layer_reports(self) -> Iterator[LayerReport]:
        for plan in self.compressed.plan.layers:
            cut = self.compressed.factors.get(plan.name)
            if cut is None:
                yield LayerReport(plan)
                continue
            before, after = self.layer_costs.get(plan.name, (None, None))
            yield LayerReport(
                plan,
                discarded_energy=cut.discarded_energy,
                relative_error=cut.relative_error,
                data_aware=cut.data_aware,
                cost_before=before,
                cost_after=after,
                measured_error=self.pictures.errors.get(plan.name),
            )


def compute_weights(
    job: Job, strategy: Any, progress: Progress, *, pictured: bool = False
) -> Weights:
    """Trains the baseline if it is the reference MLP, factorizes it, and fine-tunes.

    The layers are ``pictured`` for a report while all that takes is there.
    """
    recipe = job.recipe
    for note in job.dataset.notes:
        progress.note(note)
    baseline, training = job.network, None
    if job.trained_here:
        model, training = train_reference(
            job.network.model, job.dataset, seed=recipe.source.seed, cache=CACHE, progress=progress
        )
        baseline = Network(model)
    engine, compressed = _compress(job, baseline, strategy, progress)
    weights = Weights(baseline, training, recipe.cut, compressed)
    if recipe.tuning.finetune:
        weights = _finetuned(job, engine, weights, strategy, progress)
    costs = _layer_costs(job, engine, weights.compressed.plan, progress)
    pictures = LayerPictures()
    if pictured:
        pictures = picture_layers(engine, weights.compressed, job.dataset)
    return replace(weights, layer_costs=costs, pictures=pictures)


def _finetuned(
    job: Job, engine: Engine, cut: Weights, strategy: Any, progress: Progress
) -> Weights:
    checkpoints = _checkpoints(job, cut.baseline, cut.compressed.plan)
    if not job.recipe.tuning.resume and is_chief(strategy):
        shutil.rmtree(checkpoints, ignore_errors=True)
    tuned = _tuner(job, engine, strategy, progress, checkpoints).run(cut.compressed)
    return replace(cut, compressed=tuned.compressed, tuned=tuned, checkpoints=checkpoints)


def _tuner(
    job: Job, engine: Engine, strategy: Any, progress: Progress, checkpoints: Path | None = None
) -> FineTuner:
    return FineTuner(
        engine,
        job.dataset,
        job.recipe.tuning,
        unit="macs" if job.recipe.goal.counts_macs else "params",
        strategy=strategy,
        progress=progress,
        loss=job.loss,
        checkpoints=checkpoints,
    )


def _compress(
    job: Job, baseline: Network, strategy: Any, progress: Progress
) -> tuple[Engine, Compressed]:
    recipe, dataset = job.recipe, job.dataset

    def loss_after(engine: Engine, compressed: Compressed) -> float:
        return _tuner(job, engine, strategy, Silent()).loss_after_some(compressed, DIVISIONS)

    loss = loss_after if recipe.tuning.finetune and dataset.validation is not None else None
    engine, compressed = compressed_by(recipe, baseline, dataset, progress, loss)
    if engine.calibration is None and recipe.cut.method != "svd":
        progress.note("No training data to calibrate by: kernels are cut by their weights alone")
    if compressed.is_whole and recipe.goal.rank != NO_RANK:
        progress.note("No layer is factorized at this rank; the table of layers says why")
    return engine, compressed


def _layer_costs(
    job: Job, engine: Engine, plan: RankPlan, progress: Progress
) -> dict[str, tuple[float, float]]:
    """Measures the factorized layers on the target, whole and as they are now, by name.

    Empty without a target, and where costs are the MACs, which the plan has.
    """
    target = TARGETS.get(job.recipe.goal.target or "")
    if target is None or not target.layered:
        return {}
    with scratch_folder() as folder:
        trials = Trials(engine, job.recipe, job.dataset, folder)
        ranks = {name: [rank] for name, rank in plan.ranks.items()}
        costs = trials.measurement(target, progress).costs(Cost(0), ranks)
    return {
        c.name: (costs.of(c, None) / target.steps, costs.of(c, plan.ranks[c.name]) / target.steps)
        for c in engine.candidates
        if c.name in costs.tables
    }


def _checkpoints(job: Job, baseline: Network, plan: RankPlan) -> Path:
    """Names the folder after all that makes the result, so that no other run goes on from it."""
    recipe = job.recipe
    options = [asdict(group) for group in (recipe.goal, recipe.cut, recipe.tuning)]
    del options[-1]["resume"]
    source = [recipe.source.calibration, recipe.source.seed]
    described = json.dumps([options, source, plan.ranks, versions()], sort_keys=True)
    ingredients = hashlib.sha256(described.encode())
    ingredients.update(job.dataset.digest.encode())
    for weight in baseline.model.get_weights():
        ingredients.update(weight.tobytes())
    return CACHE / f"finetune-{ingredients.hexdigest()[:16]}"


def versions(formats: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of Python, this package, its plugins, and libraries of formats."""
    packages = [package for name in formats for package in FORMATS[name].extra.packages]
    libraries = {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *packages)}
    libraries |= {plugin.package: plugin.version for plugin in plugins.used()}
    return {"python": platform.python_version(), "exporter": __version__, **libraries}
