"""The run: Recipe -> data -> baseline -> low rank -> formats -> verify -> benchmark -> report."""

import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.baseline import (
    REFERENCE_NAME,
    Training,
    load_model,
    reference_for,
    scales_input,
    train_reference,
)
from exporter.benchmark import LatencyPair, count_macs, measure_latency
from exporter.data import NO_DATA, Dataset, fit_to_model, load_dataset
from exporter.errors import ConversionError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import (
    Artifact,
    ExportOptions,
    Format,
    KerasRunner,
    Signature,
    ToleranceRule,
    describe,
)
from exporter.isolation import ChildError
from exporter.lowrank.compress import Compressed, compress, plan_ranks
from exporter.metrics import task_metric
from exporter.output import MANIFEST, REJECTED, check_output, staged_output
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe
from exporter.report.manifest import write_manifest
from exporter.report.results import (
    ArtifactReport,
    ConversionVerdict,
    LayerReport,
    Report,
    Totals,
)
from exporter.verification.compression import (
    CompressionVerdict,
    judge_compression,
    outputs_with_classes,
)
from exporter.verification.parity import compare, execute
from exporter.verification.probes import Probe, make_probes, predict
from exporter.verification.structure import prove_structure
from exporter.verification.tolerance import (
    Predictions,
    Tolerances,
    derive_tolerances,
    float64_copy,
    given_tolerances,
)

ARTIFACTS = Path("artifacts")
CACHE = ARTIFACTS / "cache"
BASELINE_FILE = "baseline.keras"
COMPRESSED_FILE = "compressed.keras"
ARTIFACT_STEM = {"": "saved_model"}
"""Artifacts are called ``model`` and their suffix; a folder has no suffix."""

PARITY_MACS = 2_000_000_000
"""What slow executions (reference kernels, float64) may cost a probe; they see fewer samples."""

_LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")


def run(
    recipe: Recipe,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> Report:
    """Carries out a recipe: compresses, exports, verifies, measures, and writes the folder.

    Args:
        recipe: What to do.
        model: A Keras model, in place of ``recipe.model``.
        dataset: What ``load_dataset`` returned, in place of ``recipe.data``.
        progress: Is told what goes on; silent by default.

    Returns:
        The report, which is in ``manifest.json`` as well. Verdicts that failed are in it.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used; before
            any work, and nothing is written.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    job = _prepare(recipe, model, dataset)
    with staged_output(job.output, job.entries, force=recipe.force) as staging:
        for note in job.dataset.notes:
            progress.note(note)
        baseline, training = job.model, None
        if job.trained_here:
            baseline, training = train_reference(
                job.model, job.dataset, seed=recipe.seed, cache=CACHE, progress=progress
            )
            baseline.save(staging / BASELINE_FILE)
        compressed = _compress(baseline, recipe, progress)
        compressed.model.save(staging / COMPRESSED_FILE)
        with tempfile.TemporaryDirectory(prefix="exporter-") as scratch:
            verifier = Verifier(
                compressed, job.dataset, recipe, baseline=baseline, folder=Path(scratch)
            )
            exports = []
            with progress.track("Exporting and verifying", len(recipe.formats)) as advance:
                for number, name in enumerate(recipe.formats):
                    advance(number, name)
                    exports.append(_export(FORMATS[name], baseline, verifier, staging, recipe))
                advance(len(recipe.formats), "done")
        report = Report(
            recipe=recipe,
            model_name=baseline.name,
            output=str(job.output),
            data_notes=job.dataset.notes,
            samples=_sample_counts(job.dataset),
            training=training,
            layers=_layer_reports(compressed),
            before=Totals(baseline.count_params(), count_macs(baseline)),
            after=Totals(compressed.model.count_params(), verifier.macs),
            compression=verifier.compression,
            artifacts=tuple(exports),
            versions=_versions(),
            seconds=time.perf_counter() - start,
        )
        write_manifest(report, staging)
    return _relocated(report, staging, job.output)


@dataclass(frozen=True)
class _Job:
    """What a run works on, checked."""

    model: Any
    trained_here: bool
    dataset: Dataset
    output: Path
    entries: tuple[str, ...]


def _prepare(recipe: Recipe, model: Any, dataset: Dataset | None) -> _Job:
    """Loads and checks everything that can be wrong, before any work."""
    if model is not None and recipe.model is not None:
        raise RecipeError("Give a model either by recipe.model or as an object, not both.")
    trained_here = model is None and recipe.model is None
    if trained_here:
        name = REFERENCE_NAME
    else:
        name = Path(recipe.model).stem if recipe.model else model.name
    output = Path(recipe.output) if recipe.output else ARTIFACTS / f"{name}-{recipe.rank_label}"
    entries = _entries(recipe.formats, trained_here)
    check_output(output, entries, force=recipe.force)
    if recipe.model:
        model = load_model(recipe.model)
    dataset = dataset or load_dataset(recipe.data)
    if trained_here:
        model = reference_for(dataset, recipe.seed)
    plan_ranks(model, recipe.rank)
    return _Job(model, trained_here, fitted(dataset, model), output, entries)


def fitted(dataset: Dataset, model: Any) -> Dataset:
    """Fits a data set to a Keras model.

    Raises:
        DataError: If it does not fit.
    """
    signature = Signature(model)
    by_public_name = _renamed(dataset, signature)
    return fit_to_model(
        by_public_name, signature.inputs, signature.outputs, scaled_inside=scales_input(model)
    )


def _renamed(dataset: Dataset, signature: Signature) -> Dataset:
    """Lets arrays bear the Keras names of the inputs where these are no identifiers."""

    def rename(part: Any) -> Any:
        if part is None:
            return None
        return replace(part, inputs={signature.input_name(n): a for n, a in part.inputs.items()})

    return replace(
        dataset,
        train=rename(dataset.train),
        validation=rename(dataset.validation),
        test=rename(dataset.test),
    )


def artifact_name(fmt: Format) -> str:
    """Returns the name of a format's artifact in the output folder."""
    return f"model{fmt.suffix}" if fmt.suffix else fmt.name


def _entries(formats: Iterable[str], trained_here: bool) -> tuple[str, ...]:
    names = [artifact_name(FORMATS[name]) for name in formats]
    own = [COMPRESSED_FILE, MANIFEST, REJECTED, *([BASELINE_FILE] if trained_here else [])]
    return (*names, *own)


def _compress(baseline: Any, recipe: Recipe, progress: Progress) -> Compressed:
    planned = plan_ranks(baseline, recipe.rank).ranks
    if not planned:
        progress.note("No layer is factorized at this rank; the table of layers says why")
    done = 0
    with progress.track("Factorizing", len(planned)) as advance:

        def step(name: str) -> None:
            nonlocal done
            done += 1
            advance(done, name)

        return compress(baseline, recipe.rank, merge=recipe.merge, on_layer=step)


class Verifier:
    """Holds artifacts of one compressed model against it.

    Probes, reference predictions and tolerances are made once and serve all artifacts.
    """

    def __init__(
        self,
        compressed: Compressed,
        dataset: Dataset,
        recipe: Recipe,
        *,
        folder: Path,
        baseline: Any = None,
    ) -> None:
        """Predicts the probes.

        Args:
            compressed: The model and its plan.
            dataset: Fitted to the model.
            recipe: Gives tolerance and seed.
            folder: For arrays that go to child processes and back.
            baseline: For the compression verdict; without it there is none.
        """
        self.compressed = compressed
        self.folder = folder
        model = compressed.model
        signature = Signature(model)
        self.probes = make_probes(signature.inputs, signature.outputs, dataset, recipe.seed)
        self.macs = count_macs(model)
        self.limit = max(64, PARITY_MACS // max(1, self.macs))
        self.reference = _predict_all(KerasRunner(model), self.probes)
        first = self.probes[0]
        labels = dataset.test.labels if dataset.test and first.name == "test" else {}
        self.labels = {name: array[: len(first)] for name, array in labels.items()}
        self.classes = outputs_with_classes(self.reference[first.name], self.labels)
        self.compression = CompressionVerdict((), labelled=False)
        if baseline is not None:
            self.compression = judge_compression(
                predict(KerasRunner(baseline), first), self.reference[first.name], self.labels
            )
        self._given = recipe.atol is not None or recipe.rtol is not None
        self._recipe = recipe
        self._exact: Predictions | None = None

    def tolerances(self, rule: ToleranceRule) -> Tolerances:
        """Returns what is allowed: given by the recipe, or derived by the rule."""
        if self._given:
            return given_tolerances(self.reference, self._recipe.atol, self._recipe.rtol)
        if self._exact is None:
            runner = KerasRunner(float64_copy(self.compressed.model), precision="float64")
            self._exact = _predict_all(runner, self.probes, self.limit)
        return derive_tolerances(self.reference, self._exact, rule)

    def verify(self, artifact: Artifact) -> ConversionVerdict:
        """Runs and parses an artifact, and holds it against the compressed model."""
        fmt = FORMATS[artifact.format]
        tolerances = self.tolerances(fmt.tolerance)
        structure = None
        try:
            structure = prove_structure(
                fmt.stored_tensors(artifact.path),
                artifact.size,
                self.compressed.model,
                self.compressed.plan.layers,
                {name: factors.layers for name, factors in self.compressed.factors.items()},
            )
            outputs = execute(artifact, self.probes, self.folder, self.limit)
        except (ChildError, OSError, ValueError) as error:
            return ConversionVerdict(None, structure, {}, error=str(error))
        parity = compare(outputs, self.reference, self.probes, tolerances, self.classes)
        shipped = outputs[fmt.backends[0]][self.probes[0].name]
        metrics = {
            name: task_metric(shipped[name], labels)
            for name, labels in self.labels.items()
            if name in shipped and len(shipped[name]) == len(labels)
        }
        return ConversionVerdict(parity, structure, metrics)


def _predict_all(runner: KerasRunner, probes: Sequence[Probe], limit: int | None = None) -> Any:
    return {probe.name: predict(runner, probe, limit) for probe in probes}


def _export(
    fmt: Format, baseline: Any, verifier: Verifier, staging: Path, recipe: Recipe
) -> ArtifactReport:
    path = staging / artifact_name(fmt)
    options = ExportOptions(opset=recipe.opset)
    try:
        fmt.export(verifier.compressed.model, path, options)
    except ConversionError as error:
        return ArtifactReport(fmt.name, None, None, None, None, False, error=str(error))
    artifact = describe(fmt, fmt.variants[0], path, verifier.compressed.model)
    conversion = verifier.verify(artifact)
    with tempfile.TemporaryDirectory(prefix="exporter-baseline-") as folder:
        baseline_path = Path(folder) / artifact_name(fmt)
        baseline_size, latency = None, None
        try:
            fmt.export(baseline, baseline_path, options)
            baseline_size = describe(fmt, fmt.variants[0], baseline_path, baseline).size
            latency = _latency(fmt, baseline_path, path, verifier)
        except (ConversionError, ChildError):
            # The baseline is no product of this run: without it there is no ratio to report.
            latency = None
    accepted = conversion.passed and verifier.compression.passed
    if not accepted:
        (staging / REJECTED).mkdir(exist_ok=True)
        rejected = staging / REJECTED / path.name
        path.rename(rejected)
        artifact = replace(artifact, path=rejected)
    return ArtifactReport(fmt.name, artifact, conversion, baseline_size, latency, accepted)


def _latency(fmt: Format, baseline: Path, compressed: Path, verifier: Verifier) -> LatencyPair:
    probe = verifier.probes[0]
    batch = min(
        probe.batch_size, next((p.batch_size for p in verifier.probes if p.name == "single"), 1)
    )
    inputs: Mapping[str, Any] = {name: array[:batch] for name, array in probe.inputs.items()}
    return measure_latency(fmt, baseline, compressed, inputs, verifier.folder)


def _layer_reports(compressed: Compressed) -> tuple[LayerReport, ...]:
    reports = []
    for plan in compressed.plan.layers:
        factors = compressed.factors.get(plan.name)
        if factors is None:
            reports.append(LayerReport(plan, None, None))
        else:
            reports.append(LayerReport(plan, factors.discarded_energy, factors.relative_error))
    return tuple(reports)


def _sample_counts(dataset: Dataset) -> dict[str, int]:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: len(part) for name, part in parts.items() if part is not None}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "exporter": exporter_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def exporter_version() -> str:
    """Returns the version of this package."""
    from exporter import __version__

    return __version__


def _relocated(report: Report, staging: Path, output: Path) -> Report:
    """Lets the artifacts' paths speak of where they are now."""
    artifacts = tuple(
        item
        if item.artifact is None
        else replace(
            item,
            artifact=replace(item.artifact, path=output / item.artifact.path.relative_to(staging)),
        )
        for item in report.artifacts
    )
    return replace(report, artifacts=artifacts)


__all__ = ["NO_DATA", "Training", "Verifier", "fitted", "run"]
