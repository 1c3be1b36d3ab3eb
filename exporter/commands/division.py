"""Divides a budget between channels and ranks, by trying several divisions.

What channels and ranks lose cannot be told from errors of single layers alone: on a wide network
both together are best, on a small convolutional one it is channels. So for several parts of the
network that channels leave, ranks are chosen within the budget, and what comes out is compared.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from exporter.commands.budgets import accuracy_drop
from exporter.commands.prepare import engine_for, pruner_for
from exporter.commands.search import factorize
from exporter.data import Dataset
from exporter.errors import DataError, RecipeError
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.planner import Planner
from exporter.options.channels import AUTO_CHANNELS, ChannelPart
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe

PARTS: tuple[ChannelPart | None, ...] = (None, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03)
"""Parts of the network that channels leave, from the largest; None removes none."""

WORSE = 2
"""So many divisions in a row that are worse than the best one end the search."""

Loss = Callable[[Engine, Compressed], float]
"""Tells how much a compressed network loses; the least is best."""


def compressed_by(
    recipe: Recipe,
    network: Network,
    dataset: Dataset | None,
    progress: Progress | None = None,
    loss: Loss | None = None,
) -> tuple[Engine, Compressed]:
    """Removes channels and factorizes as a recipe asks.

    Args:
        recipe: Where its channels are ``"auto"``, several divisions of its budget are tried.
        network: The baseline.
        dataset: Data fitted to it, or None.
        progress: Is told what goes on; by default it is logged.
        loss: Compares the divisions, by default by the divergence from the baseline on calibration
            data. Within a limit of accuracy, the smallest network is the best one.

    Raises:
        RecipeError: If no division keeps the budget.
        DataError: If there are no data to compare divisions on.
        ConversionError: As ``factorize`` does.
    """
    if recipe.cut.channels != AUTO_CHANNELS:
        engine = engine_for(recipe, network, dataset, progress)
        return engine, factorize(engine, recipe, dataset, progress)
    if dataset is None or dataset.train is None:
        raise DataError(
            "channels 'auto' compares divisions of the budget on training data. Received: none. "
            "Give data, or channels as a part such as 0.5."
        )
    progress = progress or Logged()
    best: tuple[float, Engine, Compressed] | None = None
    worse, failure = 0, RecipeError("No division of the budget was tried.")
    with progress.track("Dividing the budget", len(PARTS)) as advance:
        for number, found in enumerate(_divisions(recipe, network, dataset, progress)):
            if isinstance(found, RecipeError):
                failure = found
                continue
            figure = _figure(recipe, dataset, found, loss)
            part = found[0].cut.channels
            advance(number + 1, f"channels {'all' if part is None else part}: {figure:.4g}")
            if best is None or figure < best[0]:
                best, worse = (figure, *found), 0
            else:
                worse += 1
            if worse == WORSE:
                break
        advance(len(PARTS), "done")
    if best is None:
        raise failure
    return best[1:]


def _divisions(
    recipe: Recipe, network: Network, dataset: Dataset, progress: Progress
) -> Iterator[tuple[Engine, Compressed] | RecipeError]:
    """Yields what comes out of each division, or why it cannot keep the budget."""
    pruner = pruner_for(recipe, network, dataset, progress)
    for part in PARTS:
        cut = replace(recipe.cut, channels=part)
        try:
            engine = engine_for(recipe, network, dataset, progress, cut, pruner=pruner)
            yield engine, factorize(engine, recipe, dataset, progress)
        except RecipeError as error:
            yield error


def _figure(
    recipe: Recipe, dataset: Dataset, found: tuple[Engine, Compressed], loss: Loss | None
) -> float:
    """Returns what is to be least."""
    engine, compressed = found
    limit = recipe.goal.max_drop
    if limit is None:
        return loss(engine, compressed) if loss else Planner(engine).loss(compressed)
    if accuracy_drop(engine.baseline, compressed.network, dataset) > limit:
        return math.inf
    network = compressed.network
    return float(network.macs if recipe.goal.counts_macs else network.params)
