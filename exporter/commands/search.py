"""Searches for the ranks that use a budget, by exporting and measuring models."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from exporter.benchmark import measure_latency
from exporter.card import Normalization
from exporter.commands.budgets import accuracy, labelled
from exporter.data import UINT8_MAX, Dataset, Split, loaded_if_small
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, Format
from exporter.formats.cards import make_card
from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.linalg.truncation import Truncation
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.named import policy_for
from exporter.lowrank.ranks.policy import RankPlan
from exporter.options.groups import Cut, Goal
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe

SIZE_ROUNDS = 6
SIZE_USED = 0.985
"""A size is searched for until this part of the budget is used."""

SEARCH_ROUNDS = 7
"""Halvings of the range, on a logarithmic scale, in which accuracy and latency are searched for."""

LATENCY_MARGIN = 0.95
"""What the search allows itself of a latency: timings vary from run to run."""

_BYTES = 4


def check_rank(network: Network, goal: Goal, cut: Cut) -> None:
    """Finds out, without computing, whether a rank fits a model.

    Raises:
        RecipeError: If the rank does not fit the model.
    """
    policy = policy_for(goal)
    if policy is not None:
        policy.check(candidates(network, convolution=cut.convolution))


def factorize(
    engine: Engine, recipe: Recipe, dataset: Dataset | None, progress: Progress | None = None
) -> Compressed:
    """Factorizes by a recipe: by its rank, or within its budget.

    Args:
        engine: Of the model, with the recipe's options.
        recipe: Says which ranks.
        dataset: Fitted to the model.
        progress: Is told what goes on.

    Raises:
        RecipeError: If the rank does not fit the model, or the budget cannot be reached.
        ConversionError: If the budget is one of artifacts, and the model does not convert.
    """
    policy = policy_for(recipe.goal)
    if policy is None:
        return compress_within(engine, recipe, dataset, progress)
    return engine.factorize(engine.plan(policy))


def compress_within(
    engine: Engine, recipe: Recipe, dataset: Dataset | None, progress: Progress | None = None
) -> Compressed:
    """Factorizes within a recipe's budget.

    Args:
        engine: Of the model.
        recipe: Has one of ``max_params``, ``max_macs``, ``max_size``, ``max_latency``,
            ``max_drop``.
        dataset: Fitted to the model; its validation part is what ``max_drop`` is held against.
        progress: Is told what goes on.

    Raises:
        RecipeError: If the budget cannot be reached; the message says what can.
        DataError: If ``max_drop`` is asked for without labelled validation data.
        ConversionError: If a size or latency is asked for, and the model does not convert.
    """
    progress = progress or Silent()
    planner = Planner(engine, progress)
    if recipe.goal.max_params is not None:
        return planner.best_within("params", recipe.goal.max_params)
    if recipe.goal.max_macs is not None:
        return planner.best_within("macs", recipe.goal.max_macs)
    if recipe.goal.max_size is not None:
        return planner.best_within("params", _params_for_size(planner, recipe, progress))
    if recipe.goal.max_latency is not None:
        return planner.best_within("macs", _macs_for_latency(planner, recipe, progress))
    validation = dataset.validation if dataset else None
    return _compress_for_drop(planner, recipe, validation, progress)


def _params_for_size(planner: Planner, recipe: Recipe, progress: Progress) -> int:
    """Finds the most parameters whose artifacts fit, by exporting models of the planned shapes."""
    limit = int(recipe.goal.max_size or 0)
    least, most = planner.smallest("params"), planner.params
    budget, best = max(least, min(most, limit // _BYTES)), 0
    smallest_size = 0
    with (
        progress.track("Searching for the size", SIZE_ROUNDS) as advance,
        tempfile.TemporaryDirectory(prefix="exporter-") as folder,
    ):
        for number in range(SIZE_ROUNDS):
            plan = planner.within("params", budget)
            params = sum(layer.params_after for layer in plan.layers)
            size = max(_sizes(planner.engine, plan, recipe, Path(folder)).values())
            advance(number + 1, f"{size:,} bytes")
            if size <= limit:
                best = max(best, budget)
                if size >= SIZE_USED * limit or budget >= most:
                    break
            elif budget <= least:
                smallest_size = size
                break
            # A file takes four bytes a parameter and an overhead that the measurement tells.
            target = limit if size > limit else (1 + SIZE_USED) / 2 * limit
            step = int((target - size) / _BYTES)
            budget = max(least, min(most, params + step, budget - 1 if size > limit else most))
            if budget == best:
                break
    if not best:
        raise RecipeError(
            f"max_size of {limit:,} bytes cannot be reached by low rank alone. "
            f"The smallest reachable is {smallest_size or 'more'} bytes."
        )
    return best


def _macs_for_latency(planner: Planner, recipe: Recipe, progress: Progress) -> int:
    """Finds the most MACs whose artifacts are fast enough, measured in their runtimes."""
    limit = float(recipe.goal.max_latency or 0) * LATENCY_MARGIN
    least, most = planner.smallest("macs"), planner.macs
    with (
        progress.track("Searching for the latency", SEARCH_ROUNDS + 1) as advance,
        tempfile.TemporaryDirectory(prefix="exporter-") as folder,
    ):

        def seconds(budget: int) -> float:
            plan = planner.within("macs", budget)
            return max(_latencies(planner.engine, plan, recipe, Path(folder)).values())

        fastest = seconds(least)
        advance(1, f"{fastest * 1e6:,.0f} µs at rank 1")
        if fastest > limit:
            raise RecipeError(
                f"max_latency of {recipe.goal.max_latency:g} s cannot be reached by low rank. "
                f"The smallest reachable is about {fastest / LATENCY_MARGIN:.2g} s on this machine."
            )

        def fits(budget: int, number: int) -> bool:
            measured = seconds(budget)
            advance(number + 2, f"{measured * 1e6:,.0f} µs")
            return measured <= limit

        return _largest(least, most, fits)


def _compress_for_drop(
    planner: Planner, recipe: Recipe, validation: Split | None, progress: Progress
) -> Compressed:
    """Finds the fewest parameters whose accuracy on the validation data is high enough."""
    limit = float(recipe.goal.max_drop or 0)
    inputs, labels = labelled(validation, recipe)
    inputs = loaded_if_small(inputs)
    baseline = accuracy(planner.engine.network, inputs, labels)
    found: dict[int, Compressed] = {}
    least, most = planner.smallest("params"), planner.params
    with progress.track("Searching for the accuracy", SEARCH_ROUNDS) as advance:

        def spoils(budget: int, number: int) -> bool:
            compressed = planner.engine.factorize(planner.within("params", budget))
            reached = accuracy(compressed.network, inputs, labels)
            advance(number + 1, f"{budget:,} parameters: {reached:.2%}")
            good_enough = reached >= baseline - limit
            if good_enough:
                found[budget] = compressed
            return not good_enough

        _largest(least, most, spoils)
    if not found:
        # All kernels dense: the model itself, with a drop of nothing.
        return planner.engine.factorize(planner.within("params", most))
    return found[min(found)]


def _largest(least: int, most: int, fits: Callable[[int, int], bool]) -> int:
    """Bisects on a logarithmic scale for the largest budget that fits; ``least`` does."""
    low, high = np.log(max(1, least)), np.log(max(1, most))
    best = least
    for number in range(SEARCH_ROUNDS):
        middle = (low + high) / 2
        budget = max(least, min(most, round(float(np.exp(middle)))))
        if fits(budget, number):
            low, best = middle, max(best, budget)
        else:
            high = middle
    return best


def skeleton(engine: Engine, plan: RankPlan) -> Compressed:
    """Builds a model of the planned shapes with random factors: size and speed are the same.

    Random, for formats store equal constants once.
    """
    rng = np.random.default_rng(0)
    truncations = {}
    for candidate in engine.candidates:
        rank = plan.ranks.get(candidate.name)
        if candidate.kernel is not None and rank is not None:
            shapes = candidate.kernel.factor_shapes(rank)
            matrices = tuple(rng.normal(size=shape) / shape[1] ** 0.5 for shape in shapes)
            truncations[candidate.name] = Truncation(matrices, None, 0.0)
    return engine.assemble(plan, truncations)


def _sizes(engine: Engine, plan: RankPlan, recipe: Recipe, folder: Path) -> dict[str, int]:
    """Exports a model of the planned shapes and returns the bytes in each format."""
    network = skeleton(engine, plan).network
    sizes = {}
    for name in recipe.export.formats:
        fmt = FORMATS[name]
        sizes[name] = fmt.size(_export(fmt, network, recipe, folder))
    return sizes


def _latencies(engine: Engine, plan: RankPlan, recipe: Recipe, folder: Path) -> dict[str, float]:
    """Exports a model of the planned shapes and returns the median seconds in each runtime."""
    network = skeleton(engine, plan).network
    inputs = {info.name: np.zeros(info.sample_shape, info.dtype) for info in network.inputs}
    medians = {}
    for name in recipe.export.formats:
        path = _export(FORMATS[name], network, recipe, folder)
        medians[name] = measure_latency(FORMATS[name], path, path, inputs, folder).compressed.p50
    return medians


def _export(fmt: Format, network: Network, recipe: Recipe, folder: Path) -> Path:
    path = Path(tempfile.mkdtemp(dir=folder)) / f"model{fmt.suffix}"
    card = make_card(
        # Of every input, and the longest that there is.
        {info.name: Normalization(std=UINT8_MAX) for info in network.inputs},
        network.outputs,
        labels=recipe.export.labels,
        description=recipe.export.description,
    )
    fmt.export(network, path, ExportOptions(opset=recipe.export.opset, card=card))
    return path
