"""``verify``: holds an artifact against the model that it was made from."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter import plugins
from exporter.commands.prepare import load
from exporter.data import Dataset
from exporter.data.tasks import shape_text
from exporter.datasets import NO_DATA
from exporter.disk import scratch_folder
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, Format, batch_notes, measure
from exporter.formats.variants import FLOAT32
from exporter.graph.fitting import fitted
from exporter.graph.signature import Interface, TensorInfo
from exporter.inputs import checked_path
from exporter.isolation import ChildError
from exporter.lowrank.engine import Compressed
from exporter.options.scale import AUTO, Scale
from exporter.output import MANIFEST, REFERENCE_FILE, finish_publication
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.report.manifest import read_manifest
from exporter.report.results import ArtifactReport
from exporter.verification.contents import read_contents
from exporter.verification.reference import Reference, Run, in_all_backends
from exporter.verification.verdict import ConversionVerdict
from exporter.verification.verifier import Verifier


def verify(
    artifact: Artifact | str | Path,
    model: Any,
    *,
    data: Any = NO_DATA,
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
    scale: Scale = AUTO,
) -> ConversionVerdict:
    """Holds an artifact against the model that it was made from, in the artifact's own runtime.

    Args:
        artifact: What ``export`` returned, or the path of an artifact of the same model.
        model: The Keras model, or what ``compress`` returned: its plan is proven as well.
        data: What ``load_dataset`` returned or takes; ``"none"`` compares on random inputs.
        atol: Absolute tolerance; with ``rtol`` None as well, both are derived.
        rtol: Relative tolerance.
        seed: Of the random inputs.
        scale: How the data are scaled; see the option of the same name.

    Raises:
        InputError: If the model, the data or the artifact's name cannot be used.
    """
    recipe = Recipe(atol=atol, rtol=rtol, seed=seed, scale=scale)
    compressed = Compressed.of(model)
    if not isinstance(artifact, Artifact):
        artifact = _described(Path(artifact))
    FORMATS[artifact.format].require_extra()
    dataset = fitted(data, compressed.network, recipe.source.scale)
    return _verify(artifact, compressed, dataset, recipe)[1]


def verify_recipe(
    artifact: str, recipe: Recipe, *, progress: Progress | None = None
) -> ArtifactReport:
    """Holds an artifact against the model of a recipe; see ``verify``.

    Raises:
        InputError: If the model, the data or the artifact's name cannot be used.
    """
    checked_path(artifact)
    network, dataset, _ = load(recipe, None, None)
    described = _described(Path(artifact))
    FORMATS[described.format].require_extra()
    with (progress or Logged()).track("Verifying", 1):
        described, verdict = _verify(described, Compressed.of(network), dataset, recipe)
    return ArtifactReport(
        described.format, described.variant, described, verdict, accepted=verdict.passed
    )


def verify_stored(
    path: str,
    manifest: str | None = None,
    *,
    progress: Progress | None = None,
    formats: Collection[str] = tuple(FORMATS),
    run: Run = in_all_backends,
) -> list[ArtifactReport]:
    """Holds the artifacts of a run against what it stored, with their runtimes alone.

    Args:
        path: The folder of the run, whose files must be the ones that it wrote; with a manifest, an
            artifact that may have come back from somewhere.
        manifest: The ``manifest.json`` of the run that made the artifact, beside its reference.
        progress: Is told what goes on; by default it is logged.
        formats: Whose artifacts are verified.
        run: Executes an artifact, in another runtime than that of its format, for one.

    Raises:
        InputError: If there is no manifest or reference of a run, or no accepted artifact in it.
    """
    whole = manifest is None
    file = Path(path) / MANIFEST if manifest is None else Path(manifest)
    checked_path(path)
    finish_publication(file.parent, progress)
    found = read_manifest(file)
    reference_file = file.parent / REFERENCE_FILE
    hashes = [e.get("sha256") for e in found["files"] if e.get("path") == REFERENCE_FILE]
    if not reference_file.is_file() or measure(reference_file)[1] not in hashes:
        raise InputError(
            f"{str(reference_file)!r} is not the reference that {str(file)!r} was written with. "
            "Put the file of the run there, or verify against the Keras model."
        )
    reference = Reference.load(reference_file)
    entries = [entry for entry in found["artifacts"] if entry.get("accepted")]
    stored = [_stored(entry, file.parent) for entry in entries]
    artifacts = [artifact for artifact in stored if artifact.format in formats]
    if not whole:
        fmt, variant = kind_of(Path(path))
        chosen = [a for a in artifacts if (a.format, a.variant) == (fmt.name, variant)]
        artifacts = [replace(artifact, path=Path(path)) for artifact in chosen]
    if not artifacts:
        raise InputError(
            f"{str(file)!r} tells of no artifact of the formats {', '.join(formats)} like {path!r}."
        )
    reports = []
    with (
        (progress or Logged()).track("Verifying", len(artifacts)) as advance,
        scratch_folder() as scratch,
    ):
        for number, artifact in enumerate(artifacts):
            advance(number, artifact.path.name)
            verdict = _judged(artifact, reference, scratch, run, whole=whole)
            reports.append(
                ArtifactReport(
                    artifact.format, artifact.variant, artifact, verdict, accepted=verdict.passed
                )
            )
        advance(len(artifacts), "done")
    return reports


def _judged(
    artifact: Artifact, reference: Reference, scratch: Path, run: Run, *, whole: bool
) -> ConversionVerdict:
    """Returns the verdict by the stored predictions, and by the hash where it must be the same."""
    if not artifact.path.exists():
        error = f"{str(artifact.path)!r} is not there any more."
        return ConversionVerdict(None, None, {}, error=error, stored=True)
    if whole and measure(artifact.path)[1] != artifact.sha256:
        error = f"It is not the file that the run wrote: its SHA-256 is not {artifact.sha256}."
        return ConversionVerdict(None, None, {}, error=error, stored=True)
    return reference.verify(artifact, scratch, run)


def _stored(entry: dict[str, Any], folder: Path) -> Artifact:
    """Reads an artifact of a manifest; raises InputError if it tells of none in the folder."""
    name = entry.get("format")
    if isinstance(name, str) and name not in FORMATS:
        plugins.check(plugins.FORMATS)
        raise InputError(
            f"An artifact is of one of the formats {', '.join(FORMATS)}. Received: {name!r} in "
            f"{str(folder / MANIFEST)!r}. Install the package that adds this format, or a later "
            "version of exporter."
        )
    try:
        file, fmt = entry["file"], FORMATS[entry["format"]]
        path, size, sha256 = folder / file["path"], int(file["size"]), str(file["sha256"])
        variant = next(v.name for v in fmt.variants if v.name == entry["variant"])
        inside = path.resolve().is_relative_to(folder.resolve())
    except (KeyError, TypeError, ValueError, OverflowError, OSError, StopIteration) as error:
        raise InputError(f"The manifest tells of an unknown artifact: {entry!r:.200}.") from error
    if not inside:
        raise InputError(f"Artifacts of a run are in its folder. Received: {file['path']!r}.")
    return Artifact(fmt.name, variant, path, size, sha256, (), ())


def _verify(
    artifact: Artifact, compressed: Compressed, dataset: Dataset, recipe: Recipe
) -> tuple[Artifact, ConversionVerdict]:
    """Returns the verdict, and the artifact with what is found in it."""
    try:
        found = read_contents(artifact.format, artifact.path, artifact.size)
    except ChildError as error:
        reason = f"It cannot be read as {artifact.format}: {error}"
        return artifact, ConversionVerdict(None, None, {}, error=reason)
    notes = batch_notes(found.batch, compressed.network)
    artifact = replace(artifact, size=found.size, figures=found.figures, notes=notes)
    if foreign := _foreign(found.interface, compressed.network.signature.interface(None)):
        return artifact, ConversionVerdict(None, None, {}, error=foreign)
    limits = recipe.verification
    with scratch_folder() as scratch:
        verifier = Verifier(
            compressed,
            dataset,
            folder=scratch,
            atol=limits.atol,
            rtol=limits.rtol,
            seed=recipe.source.seed,
            calibration=recipe.source.calibration,
        )
        return artifact, verifier.verify(artifact, found)


def _described(path: Path) -> Artifact:
    """Describes a file by its bytes alone: what is in it is read in a process of its own."""
    fmt, variant = kind_of(path)
    return Artifact(fmt.name, variant, path, *measure(path), (), ())


def kind_of(path: Path) -> tuple[Format, str]:
    """Tells format and variant of an artifact by its path; raises InputError if it is none."""
    fmt = next((fmt for fmt in FORMATS.values() if fmt.recognizes(path)), None)
    if fmt is None:
        plugins.check(plugins.FORMATS)
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    names = [variant.name for variant in fmt.variants]
    marker = path.stem.rpartition("-")[2]
    return fmt, marker if marker in names else FLOAT32


def _foreign(found: Interface, wanted: Interface) -> str | None:
    """Tells how an artifact's interface is not that of a model; None if it may be the model's.

    The batch may differ, and what converters leave open in the shapes of outputs.
    """
    inputs, expected = ({i.name: i.shape[1:] for i in infos} for infos, _ in (found, wanted))
    outputs, given = ({info.name for info in infos} for _, infos in (found, wanted))
    alike = inputs.keys() == expected.keys() and outputs == given
    if alike and all(_fit(shape, expected[name]) for name, shape in inputs.items()):
        return None
    return (
        f"It is no artifact of this model: it takes {_listed(found[0])} and gives "
        f"{_listed(found[1])}; the model takes {_listed(wanted[0])} and gives "
        f"{_listed(wanted[1])}. Give the model that it was exported from."
    )


def _fit(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in pairs)


def _listed(infos: tuple[TensorInfo, ...]) -> str:
    return ", ".join(
        f"{info.name!r} {shape_text(info.shape)}" for info in sorted(infos, key=lambda i: i.name)
    )
