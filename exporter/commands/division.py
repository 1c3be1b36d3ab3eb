"""Divides a budget between channels and ranks, by trying several divisions.

What channels and ranks lose cannot be told from errors of single layers alone: on a wide network
both together are best, on a small convolutional one it is channels. So for several parts of the
network that channels leave, ranks are chosen within the budget, and what comes out is compared.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from exporter.commands.budgets import accuracy_drop
from exporter.commands.prepare import engine_for, pruner_for
from exporter.commands.search import factorize
from exporter.data import Dataset
from exporter.errors import DataError, RecipeError
from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.planner import Planner
from exporter.options.channels import AUTO_CHANNELS, ChannelPart
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe

DIVISIONS = 6
"""The most divisions that are tried."""

BEYOND = 4
"""Divisions beyond the one at which the parameters alone would fill a file."""

LEAST_PART = 0.03
"""Part of the network that channels leave at the least, where the budget does not tell."""

SAMPLES = 2000
"""Samples that each division is calibrated by; the best one is calibrated by all."""

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
    best: tuple[float, ChannelPart | None] | None = None
    worse, failures = 0, list[RecipeError]()
    pruner = pruner_for(recipe, network, dataset, progress)

    def made(part: ChannelPart | None, samples: int) -> tuple[Engine, Compressed]:
        cut = replace(recipe.cut, channels=part)
        engine = engine_for(recipe, network, dataset, progress, cut, most=samples, pruner=pruner)
        return engine, factorize(engine, recipe, dataset, progress)

    parts = _parts(recipe, network)
    with progress.track("Dividing the budget", len(parts)) as advance:
        for number, part in enumerate(parts):
            try:
                figure = _figure(recipe, dataset, made(part, SAMPLES), loss)
            except RecipeError as error:  # This division cannot keep the budget.
                failures.append(error)
                continue
            advance(number + 1, f"channels {'all' if part is None else f'{part:.0%}'}")
            if best is None or figure < best[0]:
                best, worse = (figure, part), 0
            else:
                worse += 1
            if worse == WORSE:
                break
        advance(len(parts), "done")
    if best is None:
        raise RecipeError(
            f"No division of the budget between channels and ranks keeps {recipe.goal.kind} "
            f"{getattr(recipe.goal, recipe.goal.kind)}. With channels alone: {failures[-1]} With "
            f"ranks alone: {failures[0]}"
        )
    return made(best[1], recipe.source.calibration)


def _parts(recipe: Recipe, network: Network) -> list[float | None]:
    """Lists parts of the network that channels may leave, from the largest; None removes none.

    They lie evenly, on a logarithmic scale, between the whole network and the budget, at which
    channels alone keep it. What a file takes beside its parameters may ask for fewer.
    """
    goal, least, count = recipe.goal, LEAST_PART, DIVISIONS
    if goal.kind in ("max_params", "max_macs"):
        whole = network.macs if goal.kind == "max_macs" else network.params
        least = goal.limit(network.params, network.macs) / whole
    elif goal.max_size is not None:
        bits = max(FORMATS[name].variant(v).weight_bits for name, v in recipe.artifacts)
        least, count = goal.max_size * 8 / bits / network.params, DIVISIONS + BEYOND
    least = min(max(least, 1e-4), 0.9)
    return [None, *(least ** (k / (DIVISIONS - 1)) for k in range(1, count))]


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
