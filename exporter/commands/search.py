"""Searches for the ranks that use a budget, by exporting and measuring models."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.benchmark import measure_latency
from exporter.card import Normalization
from exporter.commands.artifact import ArtifactWriter, quantization_samples
from exporter.commands.budgets import labelled
from exporter.commands.prepare import card_of
from exporter.data import UINT8_MAX, Dataset
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import Format
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.linalg.truncation import Truncation
from exporter.lowrank.planner import Planner, Unit
from exporter.lowrank.ranks.named import policy_for
from exporter.lowrank.ranks.policy import RankPlan
from exporter.progress import Progress, Silent
from exporter.quantization.gauge import with_latent_biases
from exporter.quantization.granularity import to_try
from exporter.recipe import Recipe

SIZE_ROUNDS = 10
SIZE_USED = 0.985
"""A size is searched for until this part of the budget is used."""

SEARCH_ROUNDS = 7
"""Halvings of the range, on a logarithmic scale, in which accuracy and latency are searched for."""

LATENCY_MARGIN = 0.95
"""What the search allows itself of a latency: timings vary from run to run."""


def factorize(
    engine: Engine, recipe: Recipe, dataset: Dataset | None, progress: Progress | None = None
) -> Compressed:
    """Factorizes by the rank of a recipe, or within its budget, with data fitted to the model.

    Raises:
        RecipeError: If the rank does not fit the model, or the budget cannot be reached.
        DataError: If ``max_drop`` is asked for without labelled validation data.
        ConversionError: If the budget is one of artifacts, and the model does not convert.
    """
    policy = policy_for(recipe.goal)
    if policy is not None:
        return engine.factorize(engine.plan(policy))
    progress, goal = progress or Silent(), recipe.goal
    planner = Planner(engine, progress)
    if goal.max_params is not None or goal.max_macs is not None:
        unit: Unit = "params" if goal.max_macs is None else "macs"
        limit = goal.limit(engine.original.params, engine.original.macs)
        return planner.best_within(unit, int(limit))
    if goal.max_drop is not None:
        return _compress_for_drop(planner, recipe, dataset, progress)
    with tempfile.TemporaryDirectory(prefix="exporter-") as folder:
        trials = _Trials(engine, recipe, dataset, Path(folder))
        if goal.max_size is not None:
            limit = goal.max_size
            budget = _params_for_size(planner, trials, limit, progress)
            return planner.best_within("params", budget, fits=lambda p: trials.size(p) <= limit)
        budget = _macs_for_latency(planner, trials, float(goal.max_latency or 0), progress)
        return planner.best_within("macs", budget)


class _Trials:
    """Exports models of planned shapes with random factors, and measures the artifacts."""

    def __init__(
        self, engine: Engine, recipe: Recipe, dataset: Dataset | None, folder: Path
    ) -> None:
        self._engine, self._recipe, self._folder = engine, recipe, folder
        network = engine.network
        samples = quantization_samples(recipe, network, dataset)
        # Ranges of activations change neither size nor time: one batch serves.
        samples = samples and samples.head(1)
        # The longest card that there may be.
        normalization = {info.name: Normalization(std=UINT8_MAX) for info in network.inputs}
        card = card_of(recipe, network, normalization)
        self._writer = ArtifactWriter(recipe, Compressed.of(network), samples, card)
        self._biased = recipe.quantization.gauge and samples is not None
        self._largest: dict[tuple[tuple[str, int], ...], tuple[int, str]] = {}

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of a parameter in the widest variant."""
        variants = (FORMATS[name].variant(variant) for name, variant in self._recipe.artifacts)
        return max(variant.weight_bits for variant in variants) / 8

    def size(self, plan: RankPlan) -> int:
        """Returns the bytes of the largest artifact."""
        return self.largest(plan)[0]

    def largest(self, plan: RankPlan) -> tuple[int, str]:
        """Returns the bytes of the largest artifact, and its format and variant."""
        key = tuple(plan.ranks.items())
        if key not in self._largest:
            self._largest[key] = max(
                (fmt.size(path), f"{fmt.name} in {variant}")
                for fmt, variant, path in self._artifacts(plan)
            )
        return self._largest[key]

    def slowest(self, plan: RankPlan) -> tuple[float, str]:
        """Returns the median seconds of one call of the slowest artifact, and its format.

        The format comes with the variant; the call has one thread.
        """
        network = self._engine.network
        inputs = {
            info.name: np.zeros(network.signature.sample_shape(info), info.dtype)
            for info in network.inputs
        }
        return max(
            (latency.p50, f"{fmt.name} in {variant}")
            for fmt, variant, path in self._artifacts(plan)
            for latency in measure_latency(fmt, [path], inputs, self._folder)
        )

    def _artifacts(self, plan: RankPlan) -> Iterator[tuple[Format, str, Path]]:
        bones = skeleton(self._engine, plan)
        biased = with_latent_biases(bones) if self._biased else bones
        conversions: dict[Any, Any] = {}
        for name, variant in self._recipe.artifacts:
            fmt, network = FORMATS[name], bones.network
            # Conversions of former plans are of no more use.
            options = replace(self._writer.options(fmt, variant), conversions=conversions)
            if fmt.variant(variant).scheme is not None:
                # Of several granularities, the first takes the fewest bytes.
                granularity = to_try(self._recipe.quantization.granularity)[0]
                options = replace(options, ranges="minmax", granularity=granularity)
                network = biased.network
            path = Path(tempfile.mkdtemp(dir=self._folder)) / f"model{fmt.suffix}"
            fmt.export(network, path, options)
            yield fmt, variant, path


def _params_for_size(planner: Planner, trials: _Trials, limit: int, progress: Progress) -> int:
    """Finds the most parameters whose artifacts fit, by exporting models of the planned shapes.

    The size grows with the parameters, nearly in proportion: each guess lies on the line through
    the nearest sizes below and above the limit, and every third one halves what is left between.

    Raises:
        RecipeError: If rank 1 in every layer takes more.
    """
    least, most = planner.smallest("params"), planner.params
    slope, target = trials.bytes_per_parameter, (1 + SIZE_USED) / 2 * limit
    fitting: tuple[int, int] | None = None
    exceeding: tuple[int, int] | None = None
    low, high, budget = least, most, max(least, min(most, int(limit / slope)))
    with progress.track("Searching for the size", SIZE_ROUNDS) as advance:
        for number in range(SIZE_ROUNDS):
            size = trials.size(planner.within("params", budget))
            advance(number + 1, f"{size:,} bytes")
            if size <= limit:
                fitting, low = (budget, size), budget + 1
                if size >= SIZE_USED * limit:
                    break
            else:
                exceeding, high = (budget, size), budget - 1
            if low > high:
                break
            if fitting and exceeding:
                slope = (exceeding[1] - fitting[1]) / (exceeding[0] - fitting[0])
            guess = round(budget + (target - size) / slope)
            halfway = (low + high) // 2
            budget = max(low, min(high, halfway if number % 3 == 2 else guess))
        if fitting is None:
            smallest, artifact = trials.largest(planner.within("params", least))
            if smallest > limit:
                raise RecipeError(
                    f"max_size of {limit:,} bytes cannot be reached by low rank alone. The "
                    f"smallest reachable is {smallest:,} bytes, which {artifact} takes. Raise the "
                    "limit, or choose another format or variant."
                )
            return least
    return fitting[0]


def _macs_for_latency(planner: Planner, trials: _Trials, limit: float, progress: Progress) -> int:
    """Finds the most MACs whose artifacts are fast enough, measured in their runtimes.

    Raises:
        RecipeError: If rank 1 in every layer takes longer.
    """
    least, most = planner.smallest("macs"), planner.macs
    with progress.track("Searching for the latency", SEARCH_ROUNDS + 1) as advance:

        def fits(budget: int, number: int) -> bool:
            seconds, artifact = trials.slowest(planner.within("macs", budget))
            advance(number + 1, f"{seconds * 1e6:,.0f} µs")
            if number == 0 and seconds > limit * LATENCY_MARGIN:
                raise RecipeError(
                    f"max_latency of {limit:g} s cannot be reached by low rank alone. The smallest "
                    f"reachable is about {seconds / LATENCY_MARGIN:.2g} s on this machine, which "
                    f"{artifact} takes. Raise the limit, or choose another format or variant."
                )
            return seconds <= limit * LATENCY_MARGIN

        fits(least, 0)
        return _largest(least, most, lambda budget, number: fits(budget, number + 1))


def _compress_for_drop(
    planner: Planner, recipe: Recipe, dataset: Dataset | None, progress: Progress
) -> Compressed:
    """Finds the fewest parameters whose accuracy on the validation data is high enough."""
    limit = float(recipe.goal.max_drop or 0)
    held = labelled(dataset, recipe)
    baseline = held.accuracy(planner.engine.network)
    found: dict[int, Compressed] = {}
    least, most = planner.smallest("params"), planner.params
    with progress.track("Searching for the accuracy", SEARCH_ROUNDS) as advance:

        def spoils(budget: int, number: int) -> bool:
            compressed = planner.engine.factorize(planner.within("params", budget))
            reached = held.accuracy(compressed.network)
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
