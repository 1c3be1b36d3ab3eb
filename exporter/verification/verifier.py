"""Verifies the artifacts of one compressed model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from exporter.data import Array, Dataset
from exporter.data.metrics import snr_db
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed
from exporter.verification.compression import output_tasks
from exporter.verification.contents import Contents, read_contents
from exporter.verification.departure import LayerAgreement, compare_layers
from exporter.verification.parity import Execution, compare, execute
from exporter.verification.probes import (
    Limits,
    Probe,
    make_probes,
    predict,
    validation_probe,
)
from exporter.verification.quality import judge_quality
from exporter.verification.reference import Reference, recorded_name
from exporter.verification.rounding import (
    MOST_SAMPLES,
    Excess,
    find_excesses,
    rounding_probe,
)
from exporter.verification.structure import prove_structure
from exporter.verification.tolerance import (
    Predictions,
    Tolerances,
    derive_tolerances,
    float64_copy,
    given_tolerances,
)
from exporter.verification.verdict import ConversionVerdict, Standing

SLOW_MACS = 2_000_000_000
"""The most MACs that a slow execution (reference kernels, float64) may spend on a probe."""

_FEWEST_SAMPLES = 8


class Verifier:
    """Verifies artifacts; probes, reference and tolerances are made once and serve them all.

    Attributes:
        probes: The inputs that artifacts are compared on; the first counts most.
        reference: Predictions of the compressed model, by probe and output.
        baseline: Predictions of the first probe by the baseline, by output.
        tasks: What the values of each output mean.
        recorded: What quantized artifacts that were verified gave on the first probe, by
            ``recorded_name`` and output.
    """

    def __init__(
        self,
        compressed: Compressed,
        dataset: Dataset,
        *,
        folder: Path,
        baseline: Network | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        seed: int = 0,
        calibration: int = MOST_SAMPLES,
    ) -> None:
        """Predicts the probes, made of a data set that is fitted to the model.

        Without a ``baseline``, the compressed model is its own. The tolerance is derived if neither
        part is given. Arrays go to child processes and back through ``folder``. ``calibration`` is
        the number of samples of the training part that artifacts were calibrated on.
        """
        self._compressed, self._folder = compressed, folder
        self._atol, self._rtol = atol, rtol
        network = compressed.network
        self.probes = make_probes(network, dataset, seed)
        self._original, self._dataset = baseline or network, dataset
        self._limit = _slow_samples(network)
        self.reference = _predict_all(network, self.probes)
        first = self.probes[0]
        expected = self.reference[first.name]
        self.baseline = predict(baseline.runner(), first) if baseline else expected
        self.tasks = output_tasks(expected, dataset.tasks)
        self._exact: Predictions | None = None
        self.recorded: dict[str, dict[str, Array]] = {}
        self._rounding_probe = rounding_probe(network, dataset, first, calibration)

    @cached_property
    def _rounding_reference(self) -> Mapping[str, Array]:
        """The compressed model's predictions of the probe of rounding."""
        probe = self._rounding_probe
        if probe is self.probes[0]:
            return self.reference[probe.name]
        return predict(self._compressed.network.runner(), probe)

    def verify(self, artifact: Artifact, contents: Contents | None = None) -> ConversionVerdict:
        """Runs and parses an artifact, and compares it with the compressed model.

        ``contents`` are what has been found in it, if it has been parsed already.

        Raises:
            ModelError: If the tolerance is to be derived and the model has no float64 copy.
        """
        fmt = FORMATS[artifact.format]
        variant = fmt.variant(artifact.variant)
        try:
            found = contents or read_contents(fmt.name, artifact.path, artifact.size)
        except ChildError as error:
            return ConversionVerdict(None, None, {}, error=str(error))
        structure = prove_structure(
            found.stored, artifact.size, self._compressed, variant.weight_bits, variant.widest_bits
        )
        shipped, *others = fmt.backends
        limits: Limits = {
            shipped: self._limit if fmt.slow else None,
            **dict.fromkeys(others, self._limit),
        }
        try:
            macs = self._compressed.network.macs
            outputs = execute(artifact, self.probes, self._folder, limits, macs)
            excesses = None if variant.rule is None else self._excesses(artifact, limits[shipped])
        except (ChildError, OSError, ValueError) as error:
            return ConversionVerdict(None, structure, {}, error=str(error))
        execution = Execution(outputs, self.reference, self.probes, limits)
        first = self.probes[0]
        standings = self._standings(outputs[shipped][first.name], first, self.baseline)
        if variant.rule is None:
            parity = compare(execution, self._tolerances(), self.tasks)
            layers = () if parity.passed else self._layers(artifact, first)
            return ConversionVerdict(parity, structure, standings, layers=layers)
        self.recorded[recorded_name(artifact)] = outputs[shipped][first.name]
        quality = judge_quality(execution, variant.rule, self.tasks, excesses)
        layers = self._layers(artifact, self._rounding_probe)
        return ConversionVerdict(None, structure, standings, quality, layers=layers)

    def _layers(self, artifact: Artifact, probe: Probe) -> tuple[LayerAgreement, ...]:
        try:
            return compare_layers(artifact, self._compressed, probe, self._folder)
        except ChildError:  # Not all runtimes show what their operators compute.
            return ()

    def _excesses(self, artifact: Artifact, limit: int | None) -> dict[str, Excess]:
        """Returns the noise of each output beside what rounding explains."""
        return find_excesses(
            artifact,
            self._rounding_probe,
            self._rounding_reference,
            self._folder,
            macs=self._compressed.network.macs,
            most_samples=limit,
        )

    def standings_of(self, artifact: Artifact, network: Network) -> dict[str, Standing]:
        """Runs the artifact of a network as it ships, on the first probe alone.

        Raises:
            ChildError: If the runtime cannot run it.
        """
        return self._run_as_shipped(artifact, network, self.probes[0], self.baseline)

    def validated(self, artifact: Artifact, network: Network) -> dict[str, Standing]:
        """Runs the artifact of a network as it ships, on validation data; empty without any.

        Raises:
            ChildError: If the runtime cannot run it.
        """
        return self._run_as_shipped(artifact, network, *self._held_out) if self._held_out else {}

    def _run_as_shipped(
        self, artifact: Artifact, network: Network, probe: Probe, baseline: Mapping[str, Array]
    ) -> dict[str, Standing]:
        fmt = FORMATS[artifact.format]
        limits = {fmt.backends[0]: _slow_samples(network) if fmt.slow else None}
        outputs = execute(artifact, [probe], self._folder, limits, network.macs)
        return self._standings(outputs[fmt.backends[0]][probe.name], probe, baseline)

    @cached_property
    def _held_out(self) -> tuple[Probe, Mapping[str, Array]] | None:
        """The validation samples, with the baseline's predictions of them; None without any."""
        probe = validation_probe(self._compressed.network, self._dataset)
        return (probe, predict(self._original.runner(), probe)) if probe else None

    def _standings(
        self, predictions: Mapping[str, Array], probe: Probe, baseline: Mapping[str, Array]
    ) -> dict[str, Standing]:
        """Returns how predictions of a probe, or of its first samples, stand to the baseline's."""
        labels, standings = probe.labels, {}
        for name, original in baseline.items():
            values, task = predictions.get(name), self.tasks[name]
            if values is None or values.shape[1:] != original.shape[1:]:
                continue
            expected = original[: len(values)]
            agreement = task.agreement(values, expected) if task.classes else None
            metrics = (
                [task.metric(each, labels[name][: len(values)]) for each in (values, expected)]
                if name in labels
                else [None, None]
            )
            standings[name] = Standing(len(values), snr_db(values, expected), agreement, *metrics)
        return standings

    def stored_reference(self, *, exact: bool) -> Reference:
        """Returns what artifacts can be held against without the model.

        Args:
            exact: Whether an artifact is not quantized, and needs tolerances.
        """
        tolerances = self._tolerances() if exact else {}
        found = (self.probes, self.reference, tolerances, self.tasks, self.recorded)
        return Reference(*found).thinned()

    def _tolerances(self) -> Tolerances:
        if self._atol is not None or self._rtol is not None:
            return given_tolerances(self.reference, self._atol, self._rtol)
        if self._exact is None:
            exact = float64_copy(self._compressed.network)
            self._exact = _predict_all(exact, self.probes, self._limit)
        return derive_tolerances(self.reference, self._exact)


def _slow_samples(network: Network) -> int:
    """Returns the most samples of a probe for an execution that is slow."""
    return max(_FEWEST_SAMPLES, SLOW_MACS // max(1, network.macs))


def _predict_all(
    network: Network, probes: Sequence[Probe], limit: int | None = None
) -> Predictions:
    runner = network.runner()
    return {probe.name: predict(runner, probe, limit) for probe in probes}
