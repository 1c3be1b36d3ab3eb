"""``sweep``: runs at many ranks, each in a process of its own, and what to choose among them."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter.commands.prepare import check_rank, prepare
from exporter.commands.tracking import log_sweep
from exporter.errors import OutputError, RecipeError, did_you_mean
from exporter.formats.variants import FLOAT32
from exporter.inputs import checked_path
from exporter.options.channels import AUTO_CHANNELS, ChannelPart
from exporter.options.checks import BITS, CHANNELS, CHOICES, RANK, Sweeping
from exporter.options.groups import ALL, NOT_QUANTIZED, Cut, Goal
from exporter.options.rank import NO_RANK, parse_rank
from exporter.output import ARTIFACTS, alone_in
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.tradeoff.bisection import FIRST, Bisection
from exporter.tradeoff.front import FIGURES, UNCOMPRESSED, Point, Sweep, pareto_front
from exporter.tradeoff.front import choose as choose_point
from exporter.tradeoff.page import PAGE_FILE, write_page
from exporter.tradeoff.pools import Pool, Processes, RayCluster
from exporter.tradeoff.search import Search
from exporter.tradeoff.table import CSV_FILE, write_tables
from exporter.tradeoff.trial import Trial, digest_of_inputs
from exporter.training.reference import REFERENCE_NAME

DEFAULT_RANKS = ("4", "8", "16", "20", "32", "64")

TRIALS = "trials"

MOST_TRIALS = 8
"""The most trials that close in on the best artifact."""

MORE_TRIALS = 3
"""The same, with ranks or channels alone, after both together."""

MARKER = ".sweep"
"""File that tells that the folder is that of a sweep."""

_Tell = Callable[[Sequence[Point]], None]
"""Takes the artifacts of a trial, none if it failed."""


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
        progress: Is told of each trial; by default it is logged.

    Raises:
        RecipeError: If the recipe has a goal, a rank or a limit is none, or an extra is missing.
        InputError: If the model, the data or the folder cannot be used.
        ClusterError: If the Ray cluster cannot be reached, or is lost.
        TrackingError: If MLflow does not take the sweep; the same call logs it, without a trial.
    """
    limits: dict[str, Any] = {
        "max_size": max_size,
        "max_latency": max_latency,
        "max_drop": max_drop,
    }
    choose = _checked_choose(choose, best)
    texts = None if ranks is None else tuple(map(str, ranks))
    Sweeping(ranks=texts, search=search, best=best, choose=choose, jobs=jobs, ray=ray, **limits)
    if recipe.goal != Goal():
        raise RecipeError(
            f"A sweep chooses ranks itself. Received: {recipe.goal.kind} in the recipe. Give ranks "
            "instead."
        )
    asked_by = {"ranks": ranks, "search": search, "best": best}
    if len(given := [name for name, value in asked_by.items() if value is not None]) > 1:
        raise RecipeError(
            "Trials are at given ranks, or within budgets that a search proposes, or within those "
            f"that lead to the best artifact. Give one of them. Received: {', '.join(given)}."
        )
    if best is not None:
        recipe = _checked_best(recipe, best, choose, limits)
    if ranks is not None and not ranks:
        raise RecipeError("A sweep needs at least one rank. Received: none.")
    progress = progress or Logged()
    name = Path(recipe.source.model).stem if recipe.source.model else REFERENCE_NAME
    output = Path(checked_path(recipe.export.output or str(ARTIFACTS / f"{name}-sweep")))
    maker = _Trials(recipe, output / TRIALS)
    # What is wrong with the model, the data or a rank is told before the first trial.
    network = prepare(maker.at(Goal(rank=1)), None, None, None, writes=False).network
    if best == "accuracy":
        within = Goal(max_size=max_size) if max_size else Goal(max_latency=max_latency)
        kinds = _kinds(choose, [RANK])
        asked, total = maker.of_each_artifact(within, kinds), len(kinds) * len(recipe.artifacts)
    elif best is not None:
        kinds = _kinds(choose, [RANK, CHANNELS])
        total = MOST_TRIALS + (len(kinds) - 1) * MORE_TRIALS
        asked = maker.closing_in(best, float(max_drop or 0), kinds)
    elif search:
        asked, total = maker.proposed(search), search
    else:
        goals = {rank: Goal(rank=parse_rank(rank)) for rank in texts or DEFAULT_RANKS}
        for rank, goal in list(goals.items()):
            try:
                check_rank(network, goal, recipe.cut)
            except RecipeError:
                if ranks is not None:
                    raise
                progress.note(f"Rank {rank} is left out: it is larger than every layer's")
                del goals[rank]
        asked, total = maker.listed(goals), len(goals)
    with _folder_of(output, force=recipe.export.force):
        with RayCluster(ray, jobs) if ray else Processes(jobs) as pool:
            done = _carry_out(asked, total, pool, progress)
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
        )
        write_tables(found)
        write_page(found)
    if recipe.export.mlflow:
        log_sweep(found, recipe.export.mlflow)
    return found


@contextmanager
def _folder_of(output: Path, *, force: bool) -> Iterator[None]:
    """Keeps other sweeps out of a folder, and files that no sweep wrote in it.

    Raises:
        OutputError: If another sweep is in it, it cannot be written, or it holds such files and
            ``force`` is False.
    """
    names = (TRIALS, CSV_FILE, PAGE_FILE)
    foreign = [name for name in names if (output / name).exists()]
    if foreign and not (output / MARKER).exists() and not force:
        raise OutputError(
            f"The output folder {str(output)!r} holds {', '.join(foreign)}, which no sweep wrote. "
            "Give another folder by --output, or --force."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / MARKER).touch()
    except OSError as error:
        raise OutputError(
            f"The output folder {str(output)!r} cannot be written: {error.strerror}."
        ) from error
    with alone_in(output):
        yield


def _checked_choose(choose: Sequence[str] | None, best: str | None) -> tuple[str, ...]:
    """Returns what trials may choose; raises RecipeError if none is to be the best."""
    if choose is not None and best is None:
        raise RecipeError("choose belongs to best. Received: choose alone. Give best as well.")
    if choose is None:
        return CHOICES
    return (choose,) if isinstance(choose, str) else tuple(choose)


def _checked_best(
    recipe: Recipe, best: str, choose: Sequence[str], limits: Mapping[str, Any]
) -> Recipe:
    """Checks what the best artifact is looked for by; returns the recipe with all its variants.

    Raises:
        RecipeError: If a limit is missing, or nothing is left to choose.
    """
    unknown = sorted(set(choose) - set(CHOICES))
    if unknown or not set(choose) & {RANK, CHANNELS}:
        raise RecipeError(
            f"choose must name {RANK}, {CHANNELS} or both, and may name {BITS}. Received: "
            f"{', '.join(choose)}.{did_you_mean(unknown, CHOICES)}"
        )
    needed = ("max_size", "max_latency") if best == "accuracy" else ("max_drop",)
    if all(limits[name] is None for name in needed):
        raise RecipeError(
            f"The best {best} is one within a limit: give {' or '.join(needed)}. Received: none."
        )
    if CHANNELS in choose and recipe.cut.channels is not None:
        raise RecipeError(
            f"best chooses channels itself. Received: channels {recipe.cut.channels!r}. Leave them "
            f"out, or {CHANNELS} out of choose."
        )
    if BITS in choose and recipe.quantization.quantize == (NOT_QUANTIZED,):
        quantization = replace(recipe.quantization, quantize=(ALL,))
        return Recipe(**{**vars(recipe), "quantization": quantization})
    return recipe


def _kinds(choose: Sequence[str], alone: Sequence[str]) -> list[set[str]]:
    """Lists what trials choose by: ranks and channels together, if both may be, and each alone."""
    both = set(choose) & {RANK, CHANNELS}
    return [both, *({kind} for kind in alone if len(both) > 1)]


def _told(kind: set[str]) -> str:
    return " and ".join(each for each in (CHANNELS, RANK) if each in kind)


class _Trials:
    """Makes the trials of a sweep."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._inputs = digest_of_inputs(recipe)

    def at(self, goal: Goal, **choices: Any) -> Recipe:
        return Recipe(**{**vars(self._recipe), "goal": goal, **choices})

    def _trial(self, goal: str, recipe: Recipe) -> Trial:
        return Trial.of(recipe, goal, self._inputs, self._folder)

    def listed(self, goals: Mapping[str, Goal]) -> Iterator[tuple[Trial, _Tell]]:
        """Yields a trial for each rank."""
        for rank, goal in goals.items():
            yield self._trial(f"rank {rank}", self.at(goal)), lambda points: None

    def of_each_artifact(
        self, goal: Goal, kinds: Sequence[set[str]]
    ) -> Iterator[tuple[Trial, _Tell]]:
        """Yields trials for each artifact, within a limit that it keeps as it is exported."""
        for format_name, variant in self._recipe.artifacts:
            quantize = NOT_QUANTIZED if variant == FLOAT32 else variant
            for kind in kinds:
                cut = self._cut(AUTO_CHANNELS if CHANNELS in kind else None)
                recipe = self.at(goal, formats=(format_name,), quantize=(quantize,), cut=cut)
                limit = f"{goal.kind} {getattr(goal, goal.kind)}"
                label = f"{limit} by {_told(kind)}, {format_name} {variant}"
                yield self._trial(label, recipe), lambda points: None

    def closing_in(
        self, best: str, max_drop: float, kinds: Sequence[set[str]]
    ) -> Iterator[tuple[Trial, _Tell]]:
        """Yields trials within budgets that follow from what came of those before.

        The first kind is closed in on. The others begin at the best budget of that, and so are no
        worse than it was.
        """
        target = "arm64" if best == "instructions" else None
        unit, first = "max_params" if best == "size" else "max_macs", FIRST
        for number, kind in enumerate(kinds):
            closing = Bisection(FIGURES[best], max_drop, first)
            for _ in range(MORE_TRIALS if number else MOST_TRIALS):
                part = closing.ask()
                if part is None:
                    break
                limit: dict[str, Any] = {unit: part}
                channels: ChannelPart | None = AUTO_CHANNELS if CHANNELS in kind else None
                goal = Goal(**limit, target=target)
                if RANK not in kind:
                    counted = "macs" if target is None and best != "size" else target
                    goal, channels = Goal(rank=NO_RANK, target=counted), part
                trial = self._trial(
                    f"{unit} {part:.2%} by {_told(kind)}", self.at(goal, cut=self._cut(channels))
                )
                yield trial, partial(closing.tell, part)
            first = closing.best_part if number == 0 else first

    def _cut(self, channels: ChannelPart | None) -> Cut:
        cut = self._recipe.cut
        return cut if channels is None else replace(cut, channels=channels)

    def proposed(self, count: int) -> Iterator[tuple[Trial, _Tell]]:
        """Yields trials that are proposed by the results of those before."""
        search = Search(self._recipe.artifacts, self._recipe.source.seed)
        for _ in range(count):
            asked, part, (format_name, variant) = search.ask()
            quantize = NOT_QUANTIZED if variant == FLOAT32 else variant
            recipe = self.at(Goal(max_params=part), formats=(format_name,), quantize=(quantize,))
            yield self._trial(f"max_params {part:.1%}", recipe), partial(search.tell, asked)


@dataclass
class _Done:
    """What has come of trials: those with a run, and by goal why others failed."""

    trials: list[Trial] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    kept: int = 0


def _carry_out(
    asked: Iterator[tuple[Trial, _Tell]], total: int, pool: Pool, progress: Progress
) -> _Done:
    """Carries out trials that are not there already; each is asked for when there is room."""
    done, running = _Done(), dict[Path, _Tell]()
    with progress.track("Sweeping", total) as advance:

        def end(trial: Trial, failure: str | None, tell: _Tell, told: str) -> None:
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
                    trial, tell = next(asked)
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
