"""The artifacts of one run: exported, verified, measured, and rejected if they do not pass."""

from dataclasses import replace
from pathlib import Path

from exporter.benchmark import LatencyPair, measure_latency
from exporter.commands.artifact import ArtifactWriter
from exporter.commands.prepare import Job
from exporter.commands.weights import Weights
from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions, Format, describe
from exporter.isolation import ChildError
from exporter.output import REJECTED, artifact_name
from exporter.report.results import ArtifactReport
from exporter.verification.compression import CompressionVerdict, judge_compression
from exporter.verification.probes import predict
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
        self._writer = ArtifactWriter(recipe, weights.compressed, job.samples, job.card)
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
        try:
            trials = self._writer.write(fmt, variant, path, self._scratch)
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
            gauge=self._writer.gauge(fmt.variant(variant)),
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
