"""The trials that a sweep asks for: at ranks, or within budgets that follow from results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter.commands.prepare import check_rank, prepare
from exporter.errors import RecipeError, did_you_mean
from exporter.formats.variants import FLOAT32
from exporter.inputs import checked_path
from exporter.options.channels import AUTO_CHANNELS, ChannelPart
from exporter.options.checks import BITS, CHANNELS, CHOICES, RANK, Sweeping
from exporter.options.groups import ALL, NOT_QUANTIZED, Cut, Goal
from exporter.options.rank import NO_RANK, parse_rank
from exporter.output import ARTIFACTS
from exporter.progress import Progress
from exporter.recipe import Recipe
from exporter.tradeoff.bisection import FIRST, Bisection
from exporter.tradeoff.front import FIGURES, Point
from exporter.tradeoff.search import Search
from exporter.tradeoff.table import PARQUET
from exporter.tradeoff.trial import Trial, digest_of_inputs
from exporter.training.reference import REFERENCE_NAME

DEFAULT_RANKS = ("4", "8", "16", "20", "32", "64")

TRIALS = "trials"

MOST_TRIALS = 8
"""The most trials that close in on the best artifact."""

MORE_TRIALS = 3
"""The same, with ranks or channels alone, after both together."""

Tell = Callable[[Sequence[Point]], None]
"""Takes the artifacts of a trial, none if it failed."""


@dataclass(frozen=True)
class Asked:
    """What a sweep was asked for, checked.

    Attributes:
        output: Folder of the sweep.
        trials: The trials, each with what takes its artifacts.
        most: How many trials there are at the most.
        depend: Whether trials depend on what came of those before.
        options: How they are carried out and chosen from.
    """

    output: Path
    trials: Iterator[tuple[Trial, Tell]]
    most: int
    depend: bool
    options: Sweeping


def trials_of(
    recipe: Recipe,
    progress: Progress,
    *,
    ranks: Sequence[str | int | float] | None = None,
    search: int | None = None,
    best: str | None = None,
    choose: Sequence[str] | None = None,
    **others: Any,
) -> Asked:
    """Checks what a sweep is asked for, with model and data; see ``sweep`` for the arguments.

    Raises:
        InputError: As ``sweep`` does.
    """
    choose = _checked_choose(choose, best)
    texts = None if ranks is None else tuple(map(str, ranks))
    options = Sweeping(ranks=texts, search=search, best=best, choose=choose, **others)
    if options.parquet:
        PARQUET.require("--parquet")
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
        recipe = _checked_best(recipe, best, choose, vars(options))
    if ranks is not None and not ranks:
        raise RecipeError("A sweep needs at least one rank. Received: none.")
    name = Path(recipe.source.model).stem if recipe.source.model else REFERENCE_NAME
    output = Path(checked_path(recipe.export.output or str(ARTIFACTS / f"{name}-sweep")))
    maker = _Trials(recipe, output / TRIALS)
    # What is wrong with the model, the data or a rank is told before the first trial.
    network = prepare(maker.at(Goal(rank=1)), None, None, None, writes=False).network
    if best == "accuracy":
        size = options.max_size
        within = Goal(max_size=size) if size else Goal(max_latency=options.max_latency)
        kinds = _kinds(choose, [RANK])
        asked, total = maker.of_each_artifact(within, kinds), len(kinds) * len(recipe.artifacts)
    elif best is not None:
        kinds = _kinds(choose, [RANK, CHANNELS])
        total = MOST_TRIALS + (len(kinds) - 1) * MORE_TRIALS
        asked = maker.closing_in(best, float(options.max_drop or 0), kinds)
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
    depend = bool(search) or best not in (None, "accuracy")
    return Asked(output, asked, total, depend, options)


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

    def listed(self, goals: Mapping[str, Goal]) -> Iterator[tuple[Trial, Tell]]:
        """Yields a trial for each rank."""
        for rank, goal in goals.items():
            yield self._trial(f"rank {rank}", self.at(goal)), lambda points: None

    def of_each_artifact(
        self, goal: Goal, kinds: Sequence[set[str]]
    ) -> Iterator[tuple[Trial, Tell]]:
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
    ) -> Iterator[tuple[Trial, Tell]]:
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

    def proposed(self, count: int) -> Iterator[tuple[Trial, Tell]]:
        """Yields trials that are proposed by the results of those before."""
        search = Search(self._recipe.artifacts, self._recipe.source.seed)
        for _ in range(count):
            asked, part, (format_name, variant) = search.ask()
            quantize = NOT_QUANTIZED if variant == FLOAT32 else variant
            recipe = self.at(Goal(max_params=part), formats=(format_name,), quantize=(quantize,))
            yield self._trial(f"max_params {part:.1%}", recipe), partial(search.tell, asked)
