"""``verify``: holds an artifact against the model that it was made from."""

import tempfile
from pathlib import Path
from typing import Any

from exporter.commands.prepare import load
from exporter.data import Dataset
from exporter.datasets import NO_DATA
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, describe
from exporter.formats.variants import FLOAT32
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
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
    return describe(fmt, marker if marker in names else FLOAT32, path, network)
