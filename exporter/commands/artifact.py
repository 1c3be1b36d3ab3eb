"""Writes artifacts: variants of a model, from the factor pairs that suit their integers."""

import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.card import ModelCard
from exporter.data import Dataset
from exporter.data.metrics import snr_db
from exporter.errors import DataError, RecipeError
from exporter.formats.base import ExportOptions, Format, describe
from exporter.formats.variants import Variant
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.calibration import Calibration, calibration_from
from exporter.lowrank.engine import Compressed
from exporter.options.groups import COMPENSATED
from exporter.quantization.compensation import Compensator
from exporter.quantization.gauge import Gauged, GaugeReport, regauge
from exporter.quantization.granularity import Compensation, GranularityTrial, choose, to_try
from exporter.quantization.scheme import IntegerScheme
from exporter.recipe import Recipe
from exporter.verification.parity import execute
from exporter.verification.probes import Probe, predict

RANGE_SAMPLES = 2000
"""Most calibration samples on which ranges of activations are observed."""


class ArtifactWriter:
    """Writes the variants of one model; chooses factor pairs once for each integer scheme."""

    def __init__(
        self, recipe: Recipe, compressed: Compressed, samples: Calibration | None, card: ModelCard
    ) -> None:
        """Takes the result of ``quantization_samples``; without any, the factors stay as cut."""
        self._recipe, self._compressed = recipe, compressed
        self._samples, self._card = samples, card
        self._conversions: dict[Any, Any] = {}
        self._gauged: dict[IntegerScheme, Gauged | None] = {}
        self._compensators: dict[int, Compensator] = {}
        self._rounded: dict[IntegerScheme, tuple[Network, Compensation]] = {}

    def options(self, fmt: Format, variant: str) -> ExportOptions:
        """Returns the options of a variant, but for the granularity of its scales."""
        observed = self._samples if fmt.variant(variant).calibrated else None
        return ExportOptions(
            variant=variant,
            opset=self._recipe.export.opset,
            batch=self._recipe.export.batch,
            io_type=self._recipe.quantization.io_type,
            ranges=self._recipe.quantization.ranges,
            calibration=list(observed.batches()) if observed else (),
            card=self._card,
            conversions=self._conversions,
        )

    def write(
        self, fmt: Format, variant: str, path: Path, scratch: Path
    ) -> tuple[GranularityTrial, ...]:
        """Exports a variant with scales of the granularity asked for, or of the better one of both.

        The last whole batch of the samples measures the error: where there are several, weights are
        fitted to others. ``path`` must not exist; files that are not kept are written to the folder
        ``scratch``.

        Returns:
            The trials, the one that was written first; none where weights are no integers.

        Raises:
            ConversionError: If the converter fails.
        """
        gauged, options = self._gauge(fmt.variant(variant)), self.options(fmt, variant)
        network = (gauged.compressed if gauged else self._compressed).network
        scheme = fmt.variant(variant).scheme
        if scheme is None:
            fmt.export(network, path, options)
            return ()
        judge = None if self._samples is None else _Judge(fmt, variant, network, self._samples)
        trials: dict[GranularityTrial, Path] = {}
        folder = Path(tempfile.mkdtemp(dir=scratch))  # Another network's may be in the other one.
        for granularity in to_try(self._recipe.quantization.granularity):
            file = folder / f"{granularity}-{path.name}"
            rounded, compensation = self._round(network, replace(scheme, granularity=granularity))
            # Formats seldom share rounded networks, whose conversions would take up memory.
            kept = options.conversions if rounded is network else {}
            fmt.export(rounded, file, replace(options, granularity=granularity, conversions=kept))
            ratio = None if judge is None else judge.snr(file)
            trial = GranularityTrial(granularity, fmt.size(file), ratio, compensation)
            trials[trial] = file
        chosen = choose(list(trials), self._recipe.goal.max_size)
        shutil.move(trials[chosen], path)
        return (chosen, *(trial for trial in trials if trial is not chosen))

    def gauge(self, variant: Variant) -> GaugeReport | None:
        """Returns which factor pairs a variant is made of; None if they are those of the cut."""
        gauged = self._gauge(variant)
        return gauged.report if gauged else None

    def _round(
        self, network: Network, scheme: IntegerScheme
    ) -> tuple[Network, Compensation | None]:
        """Returns a network whose kernels are rounded as the recipe asks for."""
        if self._samples is None or self._recipe.quantization.rounding != COMPENSATED:
            return network, None
        if scheme not in self._rounded:
            if id(network) not in self._compensators:
                self._compensators[id(network)] = Compensator(network, self._samples)
            self._rounded[scheme] = self._compensators[id(network)].round(scheme)
        return self._rounded[scheme]

    def _gauge(self, variant: Variant) -> Gauged | None:
        scheme, quantization = variant.scheme, self._recipe.quantization
        usable = quantization.gauge and self._compressed.factors
        if scheme is None or self._samples is None or not usable:
            return None
        if scheme not in self._gauged:
            granularity = to_try(quantization.granularity)[0]
            gauged = regauge(
                self._compressed,
                self._samples,
                replace(scheme, granularity=granularity),
                seed=self._recipe.source.seed,
            )
            self._gauged[scheme] = gauged if gauged.report.layers else None
        return self._gauged[scheme]


class _Judge:
    """Measures artifacts of one model on the last whole batch of calibration data."""

    def __init__(self, fmt: Format, variant: str, network: Network, samples: Calibration) -> None:
        last = samples.batch(max(1, len(samples) // samples.batch_size) - 1)
        arrays = {name: np.asarray(array) for name, array in last.items()}
        self._fmt, self._variant, self._network = fmt, variant, network
        self._probe = Probe("calibration", arrays, len(next(iter(arrays.values()))))
        self._expected = predict(network.runner(), self._probe)

    def snr(self, path: Path) -> float:
        """Returns the SNR of the worst output in decibels; minus infinity if it cannot be run."""
        artifact = describe(self._fmt, self._variant, path, self._network)
        try:
            shipped = self._fmt.backends[0]
            macs = self._network.macs
            outputs = execute(artifact, [self._probe], path.parent, {shipped: None}, macs)
        except ChildError:  # The verdict will tell of it, if this one is chosen.
            return -math.inf
        actual = outputs[shipped][self._probe.name]
        return min(snr_db(actual[name], values) for name, values in self._expected.items())


def check_batch(recipe: Recipe, network: Network) -> None:
    """Raises a RecipeError if a recipe's batch size is not the one that a model insists on."""
    asked, fixed = recipe.export.batch, network.fixed_batch
    if asked and fixed and asked != fixed:
        raise RecipeError(
            f"batch must be {fixed}, which the inputs of model {network.name!r} are fixed to, or "
            f"be left out. Received: {asked}."
        )


def quantization_samples(
    recipe: Recipe, network: Network, dataset: Dataset | None
) -> Calibration | None:
    """Returns the samples that artifacts are quantized by: of the training part, if there is one.

    None where no variant has integers, which nothing is read for.

    Raises:
        DataError: If a variant is calibrated, and there is no training part.
    """
    if not recipe.has_integers:
        return None
    count = min(recipe.source.calibration, RANGE_SAMPLES)
    calibration = calibration_from(network, dataset, count) if dataset else None
    if calibration is None and recipe.needs_data:
        name = dataset.name if dataset else "none"
        raise DataError(
            f"quantize {', '.join(recipe.quantization.quantize)} calibrates ranges of activations, "
            f"or bits of layers, on a training part. Received: data {name!r} without one. Name "
            "data that have x_train, or x."
        )
    return calibration
