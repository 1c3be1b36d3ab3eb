"""``verify``: holds an artifact against the model that it was made from."""

import tempfile
from pathlib import Path
from typing import Any

from exporter.commands.prepare import load
from exporter.data import Dataset
from exporter.data.tasks import shape_text
from exporter.datasets import NO_DATA
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, describe, measure
from exporter.formats.variants import FLOAT32
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo
from exporter.lowrank.engine import Compressed
from exporter.options.scale import AUTO, Scale
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe
from exporter.report.results import ArtifactReport
from exporter.verification.verifier import ConversionVerdict, Verifier


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
        artifact = _described(Path(artifact), compressed.network)
    FORMATS[artifact.format].require_extra()
    dataset = fitted(data, compressed.network, recipe.source.scale)
    return _verify(artifact, compressed, dataset, recipe)


def verify_recipe(
    artifact: str, recipe: Recipe, *, progress: Progress | None = None
) -> ArtifactReport:
    """Holds an artifact against the model of a recipe; see ``verify``.

    Raises:
        InputError: If the model, the data or the artifact's name cannot be used.
    """
    network, dataset, _ = load(recipe, None, None)
    described = _described(Path(artifact), network)
    FORMATS[described.format].require_extra()
    with (progress or Silent()).track("Verifying", 1):
        verdict = _verify(described, Compressed.of(network), dataset, recipe)
    return ArtifactReport(
        described.format, described.variant, described, verdict, accepted=verdict.passed
    )


def _verify(
    artifact: Artifact, compressed: Compressed, dataset: Dataset, recipe: Recipe
) -> ConversionVerdict:
    try:
        found = FORMATS[artifact.format].read_interface(artifact.path)
    except Exception as error:  # Parsers raise any exception on a damaged file.
        reason = f"It cannot be read as {artifact.format}: {type(error).__name__}: {error}"
        return ConversionVerdict(None, None, {}, error=reason)
    if foreign := _foreign(found, compressed.network.signature.interface(None)):
        return ConversionVerdict(None, None, {}, error=foreign)
    limits = recipe.verification
    with tempfile.TemporaryDirectory(prefix="exporter-") as scratch:
        verifier = Verifier(
            compressed,
            dataset,
            folder=Path(scratch),
            atol=limits.atol,
            rtol=limits.rtol,
            seed=recipe.source.seed,
        )
        return verifier.verify(artifact)


def _described(path: Path, network: Network) -> Artifact:
    fmt = next((fmt for fmt in FORMATS.values() if fmt.recognizes(path)), None)
    if fmt is None:
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    names = [variant.name for variant in fmt.variants]
    marker = path.stem.rpartition("-")[2]
    variant = marker if marker in names else FLOAT32
    try:
        return describe(fmt, variant, path, network)
    except Exception:  # The verdict tells what is wrong with the file.
        return Artifact(fmt.name, variant, path, *measure(path), (), ())


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
