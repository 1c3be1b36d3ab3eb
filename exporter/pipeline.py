"""The run: Recipe, data, baseline, low rank, formats, verification, benchmark, report.

``export`` and ``verify`` are two of its stations on their own.
"""

import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.baseline import (
    REFERENCE_NAME,
    load_model,
    reference_for,
    scales_input,
    train_reference,
)
from exporter.benchmark import LatencyPair, count_macs, measure_latency
from exporter.data import Dataset, fit_to_model, load_dataset
from exporter.datasets import NO_DATA
from exporter.errors import ConversionError, InputError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import (
    Artifact,
    ExportOptions,
    Format,
    KerasRunner,
    Signature,
    describe,
)
from exporter.isolation import ChildError
from exporter.lowrank.compress import Compressed, compress, plan_ranks
from exporter.lowrank.ranks import RankPlan
from exporter.lowrank.rewrite import check_rewritable
from exporter.output import MANIFEST, REJECTED, check_output, staged_output
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe
from exporter.report.manifest import write_manifest
from exporter.report.results import ArtifactReport, LayerReport, Report, Totals
from exporter.verification.compression import CompressionVerdict, judge_compression
from exporter.verification.probes import predict
from exporter.verification.verifier import ConversionVerdict, Verifier

ARTIFACTS = Path("artifacts")
CACHE = ARTIFACTS / "cache"
BASELINE_FILE = "baseline.keras"
COMPRESSED_FILE = "compressed.keras"

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
        model: A built Keras model, in place of ``recipe.model``.
        dataset: What ``load_dataset`` returned, in place of ``recipe.data``.
        progress: Is told what goes on; silent by default.

    Returns:
        The report, which is in ``manifest.json`` as well. A verdict that failed is in it, and a
        converter that failed; neither raises.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used; nothing
            that was in the folder is changed.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    job = _prepare(recipe, model, dataset)
    with (
        staged_output(job.output, job.entries, force=recipe.force) as staging,
        tempfile.TemporaryDirectory(prefix="exporter-") as scratch,
    ):
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
        exports = _Exports(job, baseline, compressed, staging, Path(scratch))
        artifacts = []
        with progress.track("Exporting and verifying", len(recipe.formats)) as advance:
            for number, name in enumerate(recipe.formats):
                advance(number, name)
                artifacts.append(exports.carry_out(FORMATS[name]))
            advance(len(recipe.formats), "done")
        report = Report(
            recipe=recipe,
            model_name=baseline.name,
            output=job.output,
            data_notes=job.dataset.notes,
            samples=_sample_counts(job.dataset),
            training=training,
            layers=_layer_reports(compressed),
            before=Totals(baseline.count_params(), count_macs(baseline)),
            after=Totals(compressed.model.count_params(), exports.verifier.macs),
            compression=exports.compression,
            artifacts=tuple(artifacts),
            versions=_versions(),
            seconds=time.perf_counter() - start,
        )
        write_manifest(report, staging)
    return report


def export(
    model: Any,
    directory: str | Path,
    formats: Sequence[str] = ("tflite",),
    *,
    opset: int = 17,
    force: bool = False,
) -> tuple[Artifact, ...]:
    """Converts a model, compressed or not, without verifying it; see ``verify`` and ``run``.

    Args:
        model: A built Keras model, or what ``compress`` returned.
        directory: Folder to write to; made if it does not exist.
        formats: Names of formats; ``"all"`` stands for every one.
        opset: ONNX operator set.
        force: Whether artifacts that are there already are replaced.

    Returns:
        The artifacts, in the order of the formats.

    Raises:
        InputError: If an argument cannot be used, or an artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    recipe = Recipe(formats=tuple(formats), opset=opset)
    keras_model = _as_compressed(model).model
    chosen = [FORMATS[name] for name in recipe.formats]
    target = Path(directory)
    artifacts = []
    with staged_output(target, [artifact_name(fmt) for fmt in chosen], force=force) as staging:
        for fmt in chosen:
            path = staging / artifact_name(fmt)
            fmt.export(keras_model, path, ExportOptions(opset=recipe.opset))
            artifact = describe(fmt, fmt.variants[0], path, keras_model)
            artifacts.append(replace(artifact, path=target / path.name))
    return tuple(artifacts)


def verify(
    artifact: Artifact | str | Path,
    model: Any,
    *,
    data: Dataset | str = NO_DATA,
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
) -> ConversionVerdict:
    """Holds an artifact against the model that it was made from, in the artifact's own runtime.

    Args:
        artifact: What ``export`` returned, or the path of an artifact of the same model.
        model: The Keras model, or what ``compress`` returned: its plan is proven as well.
        data: What ``load_dataset`` returned or takes; ``"none"`` compares on random inputs.
        atol: Absolute tolerance; with ``rtol`` None as well, both are derived.
        rtol: Relative tolerance.
        seed: Of the random inputs.

    Raises:
        InputError: If the model, the data or the artifact's name cannot be used.
    """
    recipe = Recipe(atol=atol, rtol=rtol, seed=seed)
    compressed = _as_compressed(model)
    if not isinstance(artifact, Artifact):
        artifact = _described(Path(artifact), compressed.model)
    dataset = load_dataset(data) if isinstance(data, str) else data
    with tempfile.TemporaryDirectory(prefix="exporter-") as scratch:
        verifier = Verifier(
            compressed,
            fitted(dataset, compressed.model),
            folder=Path(scratch),
            atol=recipe.atol,
            rtol=recipe.rtol,
            seed=recipe.seed,
        )
        return verifier.verify(artifact)


def fitted(dataset: Dataset, model: Any) -> Dataset:
    """Fits a data set to a Keras model; arrays may bear the Keras names of the input layers.

    Raises:
        DataError: If it does not fit.
    """
    signature = Signature(model)

    def rename(part: Any) -> Any:
        if part is None:
            return None
        return replace(part, inputs={signature.input_name(n): a for n, a in part.inputs.items()})

    renamed = replace(
        dataset,
        train=rename(dataset.train),
        validation=rename(dataset.validation),
        test=rename(dataset.test),
    )
    return fit_to_model(
        renamed, signature.inputs, signature.outputs, scaled_inside=scales_input(model)
    )


def artifact_name(fmt: Format) -> str:
    """Returns the name of a format's artifact in the output folder."""
    return f"model{fmt.suffix}" if fmt.suffix else fmt.name


@dataclass(frozen=True)
class _Job:
    """What a run works on, checked."""

    recipe: Recipe
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
    if recipe.model is not None:
        name = Path(recipe.model).stem
    else:
        name = REFERENCE_NAME if trained_here else model.name
    output = Path(recipe.output) if recipe.output else ARTIFACTS / f"{name}-{recipe.rank_label}"
    entries = _entries(recipe.formats, trained_here)
    check_output(output, entries, force=recipe.force)
    if recipe.model is not None:
        model = load_model(recipe.model)
    dataset = dataset or load_dataset(recipe.data)
    if trained_here:
        model = reference_for(dataset, recipe.seed)
    plan_ranks(model, recipe.rank)  # Finds out whether the rank fits the model.
    return _Job(recipe, model, trained_here, fitted(dataset, model), output, entries)


def _entries(formats: Iterable[str], trained_here: bool) -> tuple[str, ...]:
    names = [artifact_name(FORMATS[name]) for name in formats]
    own = [COMPRESSED_FILE, MANIFEST, REJECTED, *([BASELINE_FILE] if trained_here else [])]
    return (*names, *own)


def _as_compressed(model: Any) -> Compressed:
    if isinstance(model, Compressed):
        return model
    check_rewritable(model)
    return Compressed(model, RankPlan(()), {})


def _described(path: Path, model: Any) -> Artifact:
    suffix = "" if path.is_dir() else path.suffix
    fmt = next((fmt for fmt in FORMATS.values() if fmt.suffix == suffix), None)
    if fmt is None or not path.exists():
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    return describe(fmt, fmt.variants[0], path, model)


def _compress(baseline: Any, recipe: Recipe, progress: Progress) -> Compressed:
    planned = plan_ranks(baseline, recipe.rank, merge=recipe.merge).ranks
    if not planned:
        progress.note("No layer is factorized at this rank; the table of layers says why")
    done = 0
    with progress.track("Factorizing", len(planned)) as advance:

        def step(name: str) -> None:
            nonlocal done
            done += 1
            advance(done, name)

        return compress(baseline, recipe.rank, merge=recipe.merge, on_layer=step)


class _Exports:
    """The artifacts of one run."""

    def __init__(
        self, job: _Job, baseline: Any, compressed: Compressed, staging: Path, scratch: Path
    ) -> None:
        recipe = job.recipe
        self._job, self._baseline, self._compressed = job, baseline, compressed
        self._staging, self._scratch = staging, scratch
        self.verifier = Verifier(
            compressed,
            job.dataset,
            folder=scratch,
            atol=recipe.atol,
            rtol=recipe.rtol,
            seed=recipe.seed,
        )
        first = self.verifier.probes[0]
        self.compression: CompressionVerdict = judge_compression(
            predict(KerasRunner(baseline), first), self.verifier.reference[first.name], first.labels
        )

    def carry_out(self, fmt: Format) -> ArtifactReport:
        """Exports to one format, verifies and measures; rejects what does not pass."""
        path = self._staging / artifact_name(fmt)
        options = ExportOptions(opset=self._job.recipe.opset)
        try:
            fmt.export(self._compressed.model, path, options)
        except ConversionError as error:
            return ArtifactReport(fmt.name, error=str(error))
        artifact = describe(fmt, fmt.variants[0], path, self._compressed.model)
        conversion = self.verifier.verify(artifact)
        report = ArtifactReport(
            fmt.name,
            artifact,
            conversion,
            accepted=conversion.passed and self.compression.passed,
        )
        try:
            baseline_path = self._scratch / path.name
            fmt.export(self._baseline, baseline_path, options)
            size = describe(fmt, fmt.variants[0], baseline_path, self._baseline).size
            report = replace(report, baseline_size=size)
            report = replace(report, latency=self._latency(fmt, baseline_path, path))
        except (ConversionError, ChildError) as error:
            # The baseline is no product of this run: it is only compared with.
            report = replace(report, comparison_error=str(error))
        if not report.accepted:
            (self._staging / REJECTED).mkdir(exist_ok=True)
            path = path.rename(self._staging / REJECTED / path.name)
        final = self._job.output / path.relative_to(self._staging)
        return replace(report, artifact=replace(artifact, path=final))

    def _latency(self, fmt: Format, baseline: Path, compressed: Path) -> LatencyPair:
        single = next(probe for probe in self.verifier.probes if probe.name == "single")
        batch = {name: array[: single.batch_size] for name, array in single.inputs.items()}
        return measure_latency(fmt, baseline, compressed, batch, self._scratch)


def _layer_reports(compressed: Compressed) -> tuple[LayerReport, ...]:
    reports = []
    for plan in compressed.plan.layers:
        factors = compressed.factors.get(plan.name)
        if factors is None:
            reports.append(LayerReport(plan))
        else:
            reports.append(LayerReport(plan, factors.discarded_energy, factors.relative_error))
    return tuple(reports)


def _sample_counts(dataset: Dataset) -> dict[str, int]:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: len(part) for name, part in parts.items() if part is not None}


def _versions() -> dict[str, str]:
    from exporter import __version__

    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "exporter": __version__, **libraries}
