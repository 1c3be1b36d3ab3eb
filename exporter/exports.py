"""The artifacts of one run: exported, verified, measured, and rejected if they do not pass."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import artifact_name
from exporter.benchmark import LatencyPair, measure_latency
from exporter.card import ModelCard
from exporter.data import Dataset
from exporter.errors import ConversionError
from exporter.formats.base import (
    ExportOptions,
    Format,
    KerasRunner,
    Tensors,
    describe,
    measure,
)
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed
from exporter.metrics import snr_db
from exporter.output import REJECTED
from exporter.quantization.granularity import INTEGER_BITS, Trial, choose, to_try
from exporter.recipe import Recipe
from exporter.report.results import ArtifactReport
from exporter.verification.compression import CompressionVerdict, judge_compression
from exporter.verification.parity import execute
from exporter.verification.probes import Probe, predict
from exporter.verification.verifier import Verifier


class Exports:
    """Carries a compressed model out to formats.

    Attributes:
        verifier: Holds artifacts against the model.
        compression: The compressed model against the baseline.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        baseline: Any,
        compressed: Compressed,
        card: ModelCard,
        *,
        calibration: Sequence[Tensors],
        staging: Path,
        output: Path,
        scratch: Path,
    ) -> None:
        """Predicts with both models what artifacts will be held against.

        Args:
            recipe: Says how.
            dataset: Fitted to the model.
            baseline: What was compressed.
            compressed: What is exported.
            card: What artifacts tell of it.
            calibration: Batches of inputs that ranges and scales are chosen on; may be empty.
            staging: Folder to write to.
            output: Folder that all of it will be moved to.
            scratch: Folder for what is not kept.
        """
        self._recipe, self._baseline, self._compressed = recipe, baseline, compressed
        self._card, self._calibration = card, calibration
        self._staging, self._output, self._scratch = staging, output, scratch
        self.verifier = Verifier(
            compressed,
            dataset,
            folder=scratch,
            atol=recipe.atol,
            rtol=recipe.rtol,
            seed=recipe.seed,
        )
        first = self.verifier.probes[0]
        self.compression: CompressionVerdict = judge_compression(
            predict(KerasRunner(baseline), first), self.verifier.reference[first.name], first.labels
        )

    def carry_out(self, fmt: Format, variant: str) -> ArtifactReport:
        """Exports to a variant of a format, verifies and measures; rejects what does not pass."""
        path = self._staging / artifact_name(fmt, variant)
        recipe = self._recipe
        options = ExportOptions(
            variant=variant,
            opset=recipe.opset,
            io_type=recipe.io_type,
            ranges=recipe.ranges,
            calibration=self._calibration if fmt.variant(variant).calibrated else (),
            card=self._card,
        )
        try:
            trials = self._export(fmt, path, options)
        except ConversionError as error:
            return ArtifactReport(fmt.name, variant, error=str(error))
        artifact = describe(fmt, variant, path, self._compressed.model)
        conversion = self.verifier.verify(artifact)
        report = ArtifactReport(
            fmt.name,
            variant,
            artifact,
            conversion,
            accepted=conversion.passed and self.compression.passed,
            trials=trials,
        )
        try:
            # What a user would ship otherwise is the baseline in float32.
            baseline_path = self._scratch / artifact_name(fmt)
            if not baseline_path.exists():
                plain = ExportOptions(opset=recipe.opset, card=self._card)
                fmt.export(self._baseline, baseline_path, plain)
            size, _ = measure(baseline_path)
            report = replace(report, baseline_size=size)
            report = replace(report, latency=self._latency(fmt, baseline_path, path))
        except (ConversionError, ChildError) as error:
            # The baseline is no product of this run: it is only compared with.
            report = replace(report, comparison_error=str(error))
        if not report.accepted:
            (self._staging / REJECTED).mkdir(exist_ok=True)
            path = path.rename(self._staging / REJECTED / path.name)
        final = self._output / path.relative_to(self._staging)
        return replace(report, artifact=replace(artifact, path=final))

    def _export(self, fmt: Format, path: Path, options: ExportOptions) -> tuple[Trial, ...]:
        """Writes the artifact at the recipe's granularity, or at the better one.

        Returns:
            What was tried, the one that was written first; nothing for what is not quantized.
        """
        model, bits = self._compressed.model, fmt.variant(options.variant).weight_bits
        if bits > INTEGER_BITS:
            fmt.export(model, path, options)
            return ()
        trials: dict[Trial, Path] = {}
        for granularity in to_try(self._recipe.granularity):
            file = self._scratch / f"{granularity}-{path.name}"
            fmt.export(model, file, replace(options, granularity=granularity))
            ratio = self._snr(fmt, options.variant, file)
            trials[Trial(granularity, measure(file)[0], ratio)] = file
        chosen = choose(list(trials))
        shutil.move(trials[chosen], path)
        return (chosen, *(trial for trial in trials if trial is not chosen))

    def _snr(self, fmt: Format, variant: str, path: Path) -> float | None:
        """Measures an artifact on calibration data, never on those that are reported on."""
        batch = next(iter(self._calibration), None)
        if batch is None:
            return None
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        probe = Probe("calibration", arrays, len(next(iter(arrays.values()))))
        artifact = describe(fmt, variant, path, self._compressed.model)
        try:
            outputs = execute(artifact, [probe], self._scratch, len(probe))
        except ChildError:  # The verdict will tell of it, if this one is chosen.
            return -math.inf
        actual = outputs[fmt.backends[0]][probe.name]
        expected = predict(KerasRunner(self._compressed.model), probe)
        return min(snr_db(actual[name], values) for name, values in expected.items())

    def _latency(self, fmt: Format, baseline: Path, compressed: Path) -> LatencyPair:
        single = next(probe for probe in self.verifier.probes if probe.name == "single")
        batch = {name: array[: single.batch_size] for name, array in single.inputs.items()}
        return measure_latency(fmt, baseline, compressed, batch, self._scratch)
