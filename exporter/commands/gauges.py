"""Chooses the factor pairs that variants with integer weights are made of."""

from exporter.data import Dataset
from exporter.errors import DataError
from exporter.formats.variants import Variant
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration, calibration_from
from exporter.lowrank.engine import Compressed
from exporter.options.groups import Quantization
from exporter.quantization.gauge import Gauged, GaugeReport, regauge
from exporter.quantization.scheme import IntegerScheme
from exporter.recipe import Recipe

RANGE_SAMPLES = 2000
"""Of the calibration samples, how many ranges of activations are observed on at the most."""


class Gauges:
    """The factors that variants with integer weights are made of; made when first asked for."""

    def __init__(
        self,
        quantization: Quantization,
        compressed: Compressed,
        calibration: Calibration | None,
        *,
        seed: int,
    ) -> None:
        """Takes what they are made of.

        Args:
            quantization: Says whether, and for what.
            compressed: The model.
            calibration: What ``quantization_samples`` returned; without it there are none.
            seed: Of the rotations that are tried.
        """
        self._quantization, self._seed = quantization, seed
        self._compressed, self._calibration = compressed, calibration
        self._made: dict[IntegerScheme, Gauged | None] = {}

    def network(self, variant: Variant) -> Network:
        """Returns the network that a variant is made of."""
        gauged = self._of(variant)
        return (gauged.compressed if gauged else self._compressed).network

    def report(self, variant: Variant) -> GaugeReport | None:
        """Returns what was chosen for a variant; None if it is made of the factors as cut."""
        gauged = self._of(variant)
        return gauged.report if gauged else None

    def _of(self, variant: Variant) -> Gauged | None:
        scheme = variant.scheme
        if scheme is None or not self._quantization.gauge:
            return None
        if scheme not in self._made:
            self._made[scheme] = self._make(scheme)
        return self._made[scheme]

    def _make(self, scheme: IntegerScheme) -> Gauged | None:
        compressed = self._compressed
        if self._calibration is None or not compressed.factors:
            return None
        gauged = regauge(
            compressed,
            self._calibration,
            scheme,
            granularity="channel" if self._quantization.granularity == "channel" else "tensor",
            seed=self._seed,
        )
        return gauged if gauged.report.layers else None


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
    if calibration is None and recipe.calibrates:
        name = dataset.name if dataset else "none"
        raise DataError(
            f"quantize {', '.join(recipe.quantization.quantize)} calibrates ranges of activations "
            f"on a training part. Received: data {name!r} without one. Name data "
            "that have x_train, or x."
        )
    return calibration
