"""Two stations of the run on their own: writing artifacts, and verifying one."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.baseline import fitted
from exporter.data import Dataset, load_dataset
from exporter.datasets import NO_DATA
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import FLOAT32, Artifact, ExportOptions, Format, describe
from exporter.lowrank.engine import Compressed
from exporter.lowrank.ranks import RankPlan
from exporter.lowrank.rewrite import check_rewritable
from exporter.output import staged_output
from exporter.recipe import Recipe
from exporter.verification.verifier import ConversionVerdict, Verifier


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
        formats: Names of formats; ``"all"`` stands for every one that is installed.
        opset: ONNX operator set.
        force: Whether artifacts that are there already are replaced.

    Returns:
        The artifacts, in the order of the formats.

    Raises:
        InputError: If an argument cannot be used, a format's packages are not installed, or an
            artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    recipe = Recipe(formats=tuple(formats), opset=opset)
    keras_model = _as_compressed(model).model
    chosen = [FORMATS[name] for name in recipe.formats]
    for fmt in chosen:
        fmt.check_available()
    target = Path(directory)
    artifacts = []
    with staged_output(target, [artifact_name(fmt) for fmt in chosen], force=force) as staging:
        for fmt in chosen:
            path = staging / artifact_name(fmt)
            fmt.export(keras_model, path, ExportOptions(opset=recipe.opset))
            artifact = describe(fmt, FLOAT32, path, keras_model)
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
    FORMATS[artifact.format].check_available()
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


def artifact_name(fmt: Format, variant: str = FLOAT32) -> str:
    """Returns the name of an artifact in the output folder."""
    marker = "" if variant == FLOAT32 else f"-{variant}"
    return f"model{marker}{fmt.suffix}" if fmt.suffix else f"{fmt.name}{marker}"


def _as_compressed(model: Any) -> Compressed:
    if isinstance(model, Compressed):
        return model
    check_rewritable(model)
    return Compressed(model, RankPlan(()), {})


def _described(path: Path, model: Any) -> Artifact:
    fmt = next((fmt for fmt in FORMATS.values() if fmt.recognizes(path)), None)
    if fmt is None:
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    return describe(fmt, FLOAT32, path, model)
