"""Tells what a run would do: checks all input, plans, and exports models of the planned shapes."""

import sys
import time
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exporter.commands.division import DIVISIONS, compressed_by
from exporter.commands.environment import free_memory
from exporter.commands.prepare import Job, engine_for, prepare
from exporter.commands.trials import Trials, skeleton
from exporter.disk import scratch_folder
from exporter.errors import ConversionError
from exporter.formats.base import Format
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.costs import PARAMS
from exporter.lowrank.ranks.named import policy_for
from exporter.lowrank.ranks.policy import RankPlan, WholeLayers
from exporter.options.channels import AUTO_CHANNELS
from exporter.output import CACHE, artifact_name, check_output
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.report.forecast import ArtifactForecast, Certainty, Forecast
from exporter.report.results import Totals
from exporter.targets.base import Subject
from exporter.training import reference

PLANNED_SAMPLES = 128
"""The most samples of calibration that a budget is divided by, where channels stay."""

TIMED_SAMPLES = 1024
"""Samples of which a batch is timed."""

TRAINED = 4
"""Predictions that training by a sample takes the time of: it computes gradients as well, and asks
the baseline."""

CALIBRATED = 8
"""Predictions that calibration by a sample takes the time of: moments, gradients, and later stages
of the cascade."""

VERIFIED = 8
"""Predictions that verification by a sample takes the time of: in float64, and in each runtime."""

ARTIFACT_SECONDS = 3.0
"""Time of an artifact beside its conversion: processes of runtimes, and latencies."""

SEARCHES = {"max_drop": 8, "max_size": 3, "max_params": 3, "max_macs": 3}
"""Times that a goal has the model cut and compared."""


def dry_run(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    exports: bool = True,
    progress: Progress | None = None,
) -> Forecast:
    """Tells what ``run`` would do, and writes nothing.

    All input is loaded and checked as a run does it. Models of the planned shapes with random
    weights are exported to a temporary folder, so that sizes are those of files. Where ranks depend
    on what a run computes, a stand-in is exported: for a budget of parameters or MACs the ranks
    that a few samples of calibration lead to, otherwise the whole model, which is the most that
    may come out. Channels are removed as a run does it, but without training.

    Args:
        recipe: As of ``run``.
        model: As of ``run``.
        dataset: As of ``run``.
        exports: False tells what the verb ``compress`` would do, which exports nothing.
        progress: Is told what goes on; by default it is logged.

    Raises:
        InputError: As ``run`` does.
    """
    start, progress = time.perf_counter(), progress or Logged()
    job = prepare(recipe, model, dataset, None, exports=exports, progress=progress)
    for note in job.dataset.notes:
        progress.note(note)
    if job.trained_here:  # Converters would leave out its biases, which are zeros.
        rng, untrained = np.random.default_rng(0), job.network.model
        untrained.set_weights([w + 0.01 * rng.random(w.shape) for w in untrained.get_weights()])
    engine, (plan, certainty, decided_by) = _planned(job, progress)
    if recipe.cut.channels is not None:
        certainty = "about" if certainty == "planned" else certainty
        decided_by += f"; channels {recipe.cut.channels}"
    with scratch_folder() as folder:
        bones = skeleton(engine, plan)
        after = bones.network
        trials = Trials(engine, recipe, job.dataset, folder)
        planned = list(trials.exports(plan)) if exports else []
        exporting = time.perf_counter()
        artifacts = _exported(planned, recipe, progress) if planned else ()
        exporting = time.perf_counter() - exporting
    predicting = _passes(job, len(planned)) * _seconds_per_sample(job)
    # Each artifact is exported once more, as the uncompressed network in the same variant.
    export_seconds = exporting + ARTIFACT_SECONDS * len(planned)
    return Forecast(
        model_name=job.network.name,
        output=job.output,
        replaced=tuple(check_output(job.output, job.entries, force=recipe.export.force)),
        plan=plan,
        certainty=certainty,
        decided_by=decided_by,
        before=Totals(job.network.params, job.network.macs),
        after=Totals(after.params, after.macs),
        artifacts=artifacts,
        seconds=time.perf_counter() - start + export_seconds + predicting,
        memory=_memory(job, engine),
        free_memory=free_memory(),
        channels=bones.channels,
    )


def _exported(
    planned: Sequence[tuple[Format, str, Callable[[], Subject]]], recipe: Recipe, progress: Progress
) -> tuple[ArtifactForecast, ...]:
    artifacts = []
    with progress.track("Exporting models of these shapes", len(planned)) as advance:
        for number, (fmt, variant, export) in enumerate(planned):
            advance(number, f"{fmt.name}, {variant}")
            size, error = None, None
            try:
                size = fmt.size(export().path)
            except ConversionError as failure:
                error = str(failure)
            if size is not None and recipe.goal.max_size is not None:
                size = min(size, recipe.goal.max_size)
            name = artifact_name(fmt, variant)
            artifacts.append(ArtifactForecast(fmt.name, variant, name, size, error))
        advance(len(planned), "done")
    return tuple(artifacts)


def _planned(job: Job, progress: Progress) -> tuple[Engine, tuple[RankPlan, Certainty, str]]:
    """Returns an engine with the channels that stay, and what ``_ranks`` tells of it."""
    recipe, goal = job.recipe, job.recipe.goal
    # What is not trained yet does not tell which division is best.
    if recipe.cut.channels == AUTO_CHANNELS and not job.trained_here:
        engine, compressed = compressed_by(recipe, job.network, job.dataset, progress)
        told = f"{goal.kind} {getattr(goal, goal.kind)}, divided by trying"
        return engine, (compressed.plan, "about", told)
    # On fewer samples than a layer has channels, those beyond their number seem to be free.
    most = PLANNED_SAMPLES if recipe.cut.channels is None else None
    engine = engine_for(recipe, job.network, job.dataset, progress, most=most)
    return engine, _ranks(engine, recipe)


def _ranks(engine: Engine, recipe: Recipe) -> tuple[RankPlan, Certainty, str]:
    """Returns ranks to compute sizes for, how sure they are, and what decides them.

    Raises:
        RecipeError: If a budget cannot be kept.
    """
    goal, policy = recipe.goal, policy_for(recipe.goal)
    if policy is not None and not policy.needs_curves:
        told = f"rank {goal.rank}"
        if recipe.tuning.finetune and recipe.tuning.train == "adaptive":
            return engine.plan(policy), "about", f"{told}, divided anew by short trainings"
        return engine.plan(policy), "planned", told
    option = f"{goal.kind} {getattr(goal, goal.kind)}"
    planner = Planner(engine)
    units = {"max_params": PARAMS, "max_macs": planner.macs}.get(goal.kind)
    if units is not None:
        limit = int(goal.limit(engine.baseline.params, engine.baseline.macs))
        told = f"{option}, divided by what each layer loses"
        return planner.within(units, limit), "about", told
    whole = engine.plan(WholeLayers())
    if policy is not None:
        return whole, "at most", f"{option}, by the spectrum of each layer"
    return whole, "at most", f"{option}, by measuring what comes out"


def _passes(job: Job, artifacts: int) -> int:
    """Returns how many predictions of a sample the run takes the time of."""
    recipe, dataset = job.recipe, job.dataset
    train = len(dataset.train) if dataset.train else 0
    test = len(dataset.test) if dataset.test else 0
    calibrated = min(train, recipe.source.calibration) if recipe.cut.method != "svd" else 0
    divided = recipe.cut.channels == AUTO_CHANNELS
    phases = 1 + (recipe.tuning.train in {"projected+factored", "adaptive"}) + divided
    return (
        CALIBRATED * calibrated * SEARCHES.get(recipe.goal.kind, 1) * (1 + DIVISIONS * divided)
        + TRAINED * train * recipe.tuning.finetune * phases
        + TRAINED * train * reference.EPOCHS * _trains_baseline(job)
        + VERIFIED * test * (artifacts and 1 + artifacts)
    )


def _trains_baseline(job: Job) -> bool:
    """Tells whether the reference MLP is trained here, and was not before."""
    if not job.trained_here:
        return False
    model, seed = job.network.model, job.recipe.source.seed
    return not reference.cached_file(model, job.dataset, seed=seed, cache=CACHE).exists()


def _seconds_per_sample(job: Job) -> float:
    """Times the prediction of a batch; 0 without data."""
    samples = calibration_from(job.network, job.dataset, TIMED_SAMPLES)
    if samples is None:
        return 0.0
    batch, runner = samples.batch(0), job.network.runner()
    runner(batch)  # Traces the graph.
    return min(timeit.repeat(lambda: runner(batch), number=1, repeat=3)) / len(
        next(iter(batch.values()))
    )


def _memory(job: Job, engine: Engine) -> int | None:
    """Returns the peak so far, with moments of calibration, and what training and exports hold."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recipe, kernels = job.recipe, [c.kernel for c in engine.candidates if c.kernel is not None]
    calibrated = job.dataset.train is not None and recipe.cut.method != "svd"
    # Of inputs and of gradients, in float64, with their factors and what these are computed by.
    moments = 32 * sum(k.groups * (k.m**2 + k.n**2) for k in kernels) * calibrated
    # The uncompressed network in float64 and as converters hold it; gradients and states of Adam.
    trains = job.trained_here or recipe.tuning.finetune > 0
    weights = 4 * job.network.params * (8 + 4 * trains)
    return (peak if sys.platform == "darwin" else 1024 * peak) + moments + weights
