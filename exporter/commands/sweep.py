"""``sweep``: runs at many ranks, each in a process of its own, and what to choose among them."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.commands.forecast import dry_run
from exporter.commands.proposals import TRIALS, Asked, Tell, trials_of
from exporter.commands.tracking import log_sweep
from exporter.errors import OutputError, RecipeError
from exporter.formats.variants import FLOAT32
from exporter.options.groups import NOT_QUANTIZED
from exporter.options.rank import NO_RANK
from exporter.output import alone_in
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.tradeoff.forecast import SweepForecast
from exporter.tradeoff.front import UNCOMPRESSED, Point, Sweep, pareto_front
from exporter.tradeoff.front import choose as choose_point
from exporter.tradeoff.page import PAGE_FILE, write_page
from exporter.tradeoff.pools import Pool, Processes, RayCluster
from exporter.tradeoff.table import CSV_FILE, PARQUET_FILE, write_tables
from exporter.tradeoff.trial import Trial

MARKER = ".sweep"
"""File that tells that the folder is that of a sweep."""


def sweep(
    recipe: Recipe,
    *,
    ranks: Sequence[str | int | float] | None = None,
    search: int | None = None,
    best: str | None = None,
    choose: Sequence[str] | None = None,
    jobs: int = 1,
    ray: str | None = None,
    max_size: int | None = None,
    max_latency: float | None = None,
    max_drop: float | None = None,
    parquet: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Carries a recipe out at many ranks or budgets, and finds the artifacts worth choosing.

    Each trial is a run of its own in ``OUTPUT/trials``, in a folder named after all that its result
    depends on. Trials that are there already are not repeated, also after an interruption.

    Args:
        recipe: Without a goal; model and data are given by their paths.
        ranks: As on the command line, or numbers; by default those of ``DEFAULT_RANKS`` that fit.
        search: If given, as many trials within budgets of parameters that Optuna proposes, instead
            of ``ranks``; each has one artifact.
        best: If given, trials within budgets that close in on the artifact that is best in this,
            instead of ``ranks``: ``"size"``, ``"latency"``, ``"macs"``, ``"instructions"`` or
            ``"accuracy"``.
        choose: Which of ``"rank"``, ``"channels"`` and ``"bits"`` such trials may choose; by
            default all of them.
        jobs: How many trials run at a time. More than one disturb each other's latencies.
        ray: Address of a Ray cluster to run the trials on, whose machines share the folders.
        max_size: Most bytes of the artifact that is chosen.
        max_latency: Most seconds of a call of it.
        max_drop: Most accuracy, 0 to 1, that it may lose; see ``Point.loss``.
        parquet: Whether to write the table as ``sweep.parquet`` as well as ``sweep.csv``.
        progress: Is told of each trial; by default it is logged.

    Raises:
        RecipeError: If the recipe has a goal, a rank or a limit is none, or an extra is missing.
        InputError: If the model, the data or the folder cannot be used.
        ClusterError: If the Ray cluster cannot be reached, or is lost.
        TrackingError: If MLflow does not take the sweep; the same call logs it, without a trial.
    """
    progress = progress or Logged()
    limits: dict[str, Any] = {
        "max_size": max_size,
        "max_latency": max_latency,
        "max_drop": max_drop,
    }
    ways: dict[str, Any] = {"ranks": ranks, "search": search, "best": best, "choose": choose}
    asked = trials_of(recipe, progress, **ways, jobs=jobs, ray=ray, parquet=parquet, **limits)
    output = asked.output
    with _folder_of(output, force=recipe.export.force):
        with RayCluster(ray, jobs) if ray else Processes(jobs) as pool:
            done = _carry_out(asked, pool, progress)
        points = _points(done.trials)
        chosen = choose_point(points, **limits, best=best)
        found = Sweep(
            tuple(points),
            tuple(pareto_front(points)),
            chosen,
            _command(chosen, done.trials) if chosen else None,
            {trial.goal: trial.rejected for trial in done.trials if trial.rejected},
            done.failures,
            done.kept,
            output,
            best,
            parquet,
        )
        write_tables(found)
        write_page(found)
    if recipe.export.mlflow:
        log_sweep(found, recipe.export.mlflow)
    return found


def dry_sweep(recipe: Recipe, *, progress: Progress | None = None, **choices: Any) -> SweepForecast:
    """Tells which trials ``sweep`` would carry out, and how long that may take; writes nothing.

    The first trial that is not there yet is told of as ``dry_run`` does. Where trials depend on
    what came of those before, only those are known that are there, and the next one.

    Args:
        recipe: As of ``sweep``.
        progress: Is told what goes on; by default it is logged.
        choices: Other arguments of ``sweep``, by name.

    Raises:
        InputError: As ``sweep`` does.
    """
    progress = progress or Logged()
    asked = trials_of(recipe, progress, **choices)
    _check_folder(asked.output, force=recipe.export.force)
    done, missing = list[Trial](), list[Trial]()
    for trial, tell in asked.trials:
        (done if trial.finished else missing).append(trial)
        if trial.finished:
            tell(trial.points)
        elif asked.depend:
            break
    first = None
    try:
        first = dry_run(missing[0].recipe, progress=progress) if missing else None
    except RecipeError as error:  # Searches try what nothing can keep.
        progress.note(f"{missing[0].goal} cannot be kept: {error}")
    return SweepForecast(
        output=asked.output,
        done=tuple(trial.goal for trial in done),
        missing=tuple(trial.goal for trial in missing),
        more=asked.most - len(done) - len(missing) if missing and asked.depend else 0,
        jobs=asked.options.jobs,
        ray=asked.options.ray,
        first=first,
    )


@contextmanager
def _folder_of(output: Path, *, force: bool) -> Iterator[None]:
    """Keeps other sweeps out of a folder, and files that no sweep wrote in it.

    Raises:
        OutputError: If another sweep is in it, it cannot be written, or it holds such files and
            ``force`` is False.
    """
    _check_folder(output, force=force)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / MARKER).touch()
    except OSError as error:
        raise OutputError(
            f"The output folder {str(output)!r} cannot be written: {error.strerror}."
        ) from error
    with alone_in(output):
        yield


def _check_folder(output: Path, *, force: bool) -> None:
    """Raises OutputError if a folder holds files that no sweep wrote, unless forced."""
    names = (TRIALS, CSV_FILE, PARQUET_FILE, PAGE_FILE)
    foreign = [name for name in names if (output / name).exists()]
    if foreign and not (output / MARKER).exists() and not force:
        raise OutputError(
            f"The output folder {str(output)!r} holds {', '.join(foreign)}, which no sweep wrote. "
            "Give another folder by --output, or --force."
        )


@dataclass
class _Done:
    """What has come of trials: those with a run, and by goal why others failed."""

    trials: list[Trial] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    kept: int = 0


def _carry_out(asked: Asked, pool: Pool, progress: Progress) -> _Done:
    """Carries out trials that are not there already; each is asked for when there is room."""
    done, running = _Done(), dict[Path, Tell]()
    with progress.track("Sweeping", asked.most) as advance:

        def end(trial: Trial, failure: str | None, tell: Tell, told: str) -> None:
            if failure is None:
                done.trials.append(trial)
            else:
                done.failures[trial.goal] = failure
            tell(trial.points if failure is None else [])
            number = len(done.trials) + len(done.failures)
            advance(number, f"{trial.goal} {told if failure is None else 'FAILED'}")

        more = True
        while more or running:
            while more and len(running) < pool.capacity:
                try:
                    trial, tell = next(asked.trials)
                except StopIteration:
                    more = False
                    break
                if trial.finished:
                    done.kept += 1
                    end(trial, None, tell, "was there already")
                elif trial.folder not in running:  # A proposal may be made twice.
                    pool.start(trial)
                    running[trial.folder] = tell
            if running:
                trial, failure = pool.wait()
                end(trial, failure, running.pop(trial.folder), "is done")
    return done


def _points(trials: Sequence[Trial]) -> list[Point]:
    """Returns the artifacts of all trials; the uncompressed network once for each variant."""
    found: dict[tuple[str, ...], Point] = {}
    for point in (point for trial in trials for point in trial.points):
        found.setdefault((point.goal, point.format, point.variant), point)
    return list(found.values())


def _command(chosen: Point, trials: Sequence[Trial]) -> str:
    """Returns the command that exports an artifact again, alone."""
    trial = next(trial for trial in trials if str(trial.folder) == chosen.trial)
    quantize = NOT_QUANTIZED if chosen.variant == FLOAT32 else chosen.variant
    words = ["exporter", "run", "--recipe", str(trial.file), "--report", "--no-force"]
    words += ["--rank", NO_RANK] if chosen.goal == UNCOMPRESSED else []
    words += ["--format", chosen.format, "--quantize", quantize]
    return shlex.join([*words, "--output", str(trial.folder.parent.with_name("chosen"))])
