"""The artifacts of one run: exported, verified, measured, and rejected if they do not pass."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporter.benchmark import LatencyPair, measure_latency
from exporter.commands.gauges import Gauges
from exporter.commands.prepare import Job, export_options
from exporter.commands.weights import Weights
from exporter.data.metrics import snr_db
from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions, Format, describe
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.lowrank.calibration import Calibration
from exporter.output import REJECTED, artifact_name
from exporter.quantization.granularity import GranularityTrial, choose, to_try
from exporter.report.results import ArtifactReport
from exporter.verification.compression import CompressionVerdict, judge_compression
from exporter.verification.parity import execute
from exporter.verification.probes import Probe, predict
from exporter.verification.verifier import Verifier


class Exports:
    """Exports, verifies and measures the artifacts of one run.

    Attributes:
        verifier: Holds artifacts against the model.
        compression: The compressed model against the baseline.
    """

    def __init__(self, job: Job, weights: Weights, staging: Path, scratch: Path) -> None:
        """Predicts with both models the outputs that artifacts will be compared with.

        Args:
            job: The run.
            weights: Its models.
            staging: Folder to write to; all of it will be moved to the output folder.
            scratch: Folder for what is not kept.
        """
        recipe = job.recipe
        self._job, self._weights, self._staging, self._scratch = job, weights, staging, scratch
        self._gauges = Gauges(
            recipe.quantization, weights.compressed, job.samples, seed=recipe.source.seed
        )
        self.verifier = Verifier(
            weights.compressed,
            job.dataset,
            folder=scratch,
            atol=recipe.verification.atol,
            rtol=recipe.verification.rtol,
            seed=recipe.source.seed,
        )
        first = self.verifier.probes[0]
        baseline = predict(weights.baseline.runner(), first)
        self.compression: CompressionVerdict = judge_compression(
            baseline, self.verifier.reference[first.name], first.labels
        )

    def write(self, fmt: Format, variant: str) -> ArtifactReport:
        """Exports to a variant of a format, verifies and measures; rejects what does not pass."""
        path = self._staging / artifact_name(fmt, variant)
        job, recipe = self._job, self._job.recipe
        options = export_options(recipe, fmt, variant, job.samples, job.card)
        try:
            trials = write_artifact(
                fmt,
                self._gauges.network(fmt.variant(variant)),
                path,
                options,
                granularity=recipe.quantization.granularity,
                samples=job.samples,
                scratch=self._scratch,
                limit=recipe.goal.max_size,
            )
        except ConversionError as error:
            return ArtifactReport(fmt.name, variant, error=str(error))
        artifact = describe(fmt, variant, path, self._weights.compressed.network)
        conversion = self.verifier.verify(artifact)
        report = ArtifactReport(
            fmt.name,
            variant,
            artifact,
            conversion,
            accepted=conversion.passed and self.compression.passed,
            trials=trials,
            gauge=self._gauges.report(fmt.variant(variant)),
        )
        try:
            # What a user would ship otherwise is the baseline in float32.
            baseline_path = self._scratch / artifact_name(fmt)
            if not baseline_path.exists():
                plain = ExportOptions(opset=recipe.export.opset, card=job.card)
                fmt.export(self._weights.baseline, baseline_path, plain)
            report = replace(report, baseline_size=fmt.size(baseline_path))
            report = replace(report, latency=self._latency(fmt, baseline_path, path))
        except (ConversionError, ChildError) as error:
            # The baseline is no product of this run: it is only compared with.
            report = replace(report, comparison_error=str(error))
        if not report.accepted:
            (self._staging / REJECTED).mkdir(exist_ok=True)
            path = path.rename(self._staging / REJECTED / path.name)
        final = job.output / path.relative_to(self._staging)
        return replace(report, artifact=replace(artifact, path=final))

    def _latency(self, fmt: Format, baseline: Path, compressed: Path) -> LatencyPair:
        single = next(probe for probe in self.verifier.probes if probe.name == "single")
        batch = {name: array[: single.batch_size] for name, array in single.inputs.items()}
        return measure_latency(fmt, baseline, compressed, batch, self._scratch)


def write_artifact(
    fmt: Format,
    network: Network,
    path: Path,
    options: ExportOptions,
    *,
    granularity: str,
    samples: Calibration | None,
    scratch: Path,
    limit: int | None = None,
) -> tuple[GranularityTrial, ...]:
    """Exports a model at a granularity, or at the better one of both.

    Args:
        fmt: The format.
        network: The model.
        path: What is written; must not exist.
        options: All but the granularity.
        granularity: ``"tensor"``, ``"channel"``, or ``"auto"``; see ``Recipe``.
        samples: What ``quantization_samples`` returned; its first batch measures the error, and
            never what is reported on.
        scratch: Folder for what is not kept.
        limit: Most bytes; see ``granularity.choose``.

    Returns:
        What was tried, the one that was written first; nothing where weights are no integers.

    Raises:
        ConversionError: If the converter fails.
    """
    if fmt.variant(options.variant).scheme is None:
        fmt.export(network, path, options)
        return ()
    judge = None if samples is None else _Judge(fmt, options.variant, network, samples)
    trials: dict[GranularityTrial, Path] = {}
    for each in to_try(granularity):
        file = scratch / f"{each}-{path.name}"
        fmt.export(network, file, replace(options, granularity=each))
        ratio = None if judge is None else judge.snr(file)
        trials[GranularityTrial(each, fmt.size(file), ratio)] = file
    chosen = choose(list(trials), limit)
    shutil.move(trials[chosen], path)
    return (chosen, *(trial for trial in trials if trial is not chosen))


class _Judge:
    """Measures artifacts of one model on the first batch of calibration data."""

    def __init__(self, fmt: Format, variant: str, network: Network, samples: Calibration) -> None:
        arrays = {name: np.asarray(array) for name, array in next(samples.batches()).items()}
        self._fmt, self._variant, self._network = fmt, variant, network
        self._probe = Probe("calibration", arrays, len(next(iter(arrays.values()))))
        self._expected = predict(network.runner(), self._probe)

    def snr(self, path: Path) -> float:
        """Returns that of the worst output, in decibels; minus infinity if it cannot be run."""
        artifact = describe(self._fmt, self._variant, path, self._network)
        try:
            limits = dict.fromkeys(self._fmt.backends)
            outputs = execute(artifact, [self._probe], path.parent, limits)
        except ChildError:  # The verdict will tell of it, if this one is chosen.
            return -math.inf
        actual = outputs[self._fmt.backends[0]][self._probe.name]
        return min(snr_db(actual[name], values) for name, values in self._expected.items())
