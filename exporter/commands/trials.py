"""Exports models of planned shapes, and measures what a plan comes to in bytes and on a target."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporter.card import Normalization
from exporter.commands.artifact import ArtifactWriter, quantization_samples
from exporter.commands.prepare import card_of
from exporter.data import UINT8_MAX, Dataset
from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, Format
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed, Engine, placeholder
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.costs import Costs
from exporter.lowrank.ranks.policy import RankPlan, WholeLayers
from exporter.options.groups import HERE
from exporter.output import CACHE, COSTS_FILE
from exporter.progress import Progress
from exporter.quantization.gauge import with_latent_biases
from exporter.quantization.granularity import to_try
from exporter.recipe import Recipe
from exporter.targets import Target
from exporter.targets.base import Cost, Subject
from exporter.targets.layers import LayerMeasurement

LEAST_GAIN = 0.03
"""Part of the cost that low rank must save to be worth its error."""


class Trials:
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
        self._whole_costs: dict[str, Cost] = {}

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
                (fmt.size(subject.path), f"{fmt.name} in {variant}")
                for fmt, variant, subject in self._artifacts(plan)
            )
        return self._largest[key]

    def costs(self, target: Target, planner: Planner, progress: Progress) -> Costs:
        """Measures what kernels cost on a target, in the first variant that it can run."""
        if not target.layered:
            return planner.macs
        return self.measurement(target, progress).costs(self._whole_cost(target))

    def costliest(self, plan: RankPlan, target: Target) -> tuple[Cost, str]:
        """Returns the cost of the costliest artifact on a target, with its format and variant."""
        network = self._engine.network
        inputs = {
            info.name: np.zeros(network.signature.sample_shape(info), info.dtype)
            for info in network.inputs
        }
        try:
            found = [
                (cost, f"{fmt.name} in {variant}")
                for fmt, variant, subject in self._artifacts(plan, target)
                for cost in target.measure(fmt, [subject], inputs, detailed=target.name == HERE)
            ]
        except ChildError as error:
            raise ConversionError(
                f"Target {target.name!r} cannot run the model: {error}"
            ) from error
        return max(found, key=lambda pair: pair[0].value)

    def is_cheaper(self, plan: RankPlan, target: Target) -> bool:
        """Tells whether the artifact of a plan costs clearly less than the whole network's."""
        whole = self._whole_cost(target)
        return self.costliest(plan, target)[0].value < (1 - LEAST_GAIN) * whole.value

    def _whole_cost(self, target: Target) -> Cost:
        """Returns the cost of the network as it is, which is measured once."""
        if target.name not in self._whole_costs:
            whole, _ = self.costliest(self._engine.plan(WholeLayers()), target)
            self._whole_costs[target.name] = whole
        return self._whole_costs[target.name]

    def measurement(self, target: Target, progress: Progress) -> LayerMeasurement:
        """Prepares the measurement of layers on a target, in the first variant that it can run."""
        fmt, variant = next(
            (FORMATS[name], variant)
            for name, variant in self._recipe.artifacts
            if FORMATS[name].is_measured(target.name, variant)
        )
        cache = None if target.name == HERE else CACHE / COSTS_FILE
        options = self._options(fmt, variant, {})
        return LayerMeasurement(target, fmt, options, self._engine, cache, progress)

    def _options(self, fmt: Format, variant: str, conversions: dict[Any, Any]) -> ExportOptions:
        options = replace(self._writer.options(fmt, variant), conversions=conversions)
        if fmt.variant(variant).scheme is None:
            return options
        # Of several granularities, the first takes the fewest bytes.
        granularity = to_try(self._recipe.quantization.granularity)[0]
        return replace(options, ranges="minmax", granularity=granularity)

    def _artifacts(
        self, plan: RankPlan, target: Target | None = None
    ) -> Iterator[tuple[Format, str, Subject]]:
        for fmt, variant, export in self.exports(plan, target):
            yield fmt, variant, export()

    def exports(
        self, plan: RankPlan, target: Target | None = None
    ) -> Iterator[tuple[Format, str, Callable[[], Subject]]]:
        """Yields a function that exports a plan for each variant, or those that a target can run.

        It raises a ConversionError if the model does not convert.
        """
        bones = skeleton(self._engine, plan)
        biased = with_latent_biases(bones) if self._biased else bones
        conversions: dict[Any, Any] = {}
        for name, variant in self._recipe.artifacts:
            fmt = FORMATS[name]
            if target is not None and not fmt.is_measured(target.name, variant):
                continue
            network = (biased if fmt.variant(variant).scheme else bones).network
            # Conversions of former plans are of no more use.
            yield fmt, variant, partial(self._export, fmt, variant, network, conversions)

    def _export(
        self, fmt: Format, variant: str, network: Network, conversions: dict[Any, Any]
    ) -> Subject:
        path = Path(tempfile.mkdtemp(dir=self._folder)) / f"model{fmt.suffix}"
        fmt.export(network, path, self._options(fmt, variant, conversions))
        return Subject(path, network)


def skeleton(engine: Engine, plan: RankPlan) -> Compressed:
    """Builds a model of the planned shapes with random factors: size and speed are the same."""
    rng = np.random.default_rng(0)
    truncations = {
        c.name: placeholder(c.kernel, plan.ranks[c.name], rng, merge=engine.cut.merge)
        for c in engine.candidates
        if c.kernel is not None and c.name in plan.ranks
    }
    return engine.assemble(plan, truncations)
