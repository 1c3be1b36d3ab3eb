"""Two stations of the run on their own: writing artifacts, and verifying one."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.baseline import fitted
from exporter.card import ModelCard, check_card
from exporter.data import Dataset, load_dataset
from exporter.datasets import NO_DATA
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import (
    FLOAT32,
    Artifact,
    ExportOptions,
    Format,
    Signature,
    describe,
)
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
    card: ModelCard | None = None,
    force: bool = False,
) -> tuple[Artifact, ...]:
    """Converts a model, compressed or not, without verifying it; see ``verify`` and ``run``.

    Args:
        model: A built Keras model, or what ``compress`` returned.
        directory: Folder to write to; made if it does not exist.
        formats: Names of formats; ``"all"`` stands for every one.
        opset: ONNX operator set.
        card: What the artifacts tell of the model, such as names of its classes.
        force: Whether artifacts that are there already are replaced.

    Returns:
        The artifacts, in the order of the formats.

    Raises:
        InputError: If an argument cannot be used, or an artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    recipe = Recipe(formats=tuple(formats), opset=opset)
    keras_model = _as_compressed(model).model
    signature = Signature(keras_model)
    card = card or ModelCard()
    check_card(card, signature.inputs, signature.outputs)
    options = ExportOptions(opset=recipe.opset, card=card)
    chosen = [FORMATS[name] for name in recipe.formats]
    target = Path(directory)
    artifacts = []
    with staged_output(target, [artifact_name(fmt) for fmt in chosen], force=force) as staging:
        for fmt in chosen:
            path = staging / artifact_name(fmt)
            fmt.export(keras_model, path, options)
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
    suffix = "" if path.is_dir() else path.suffix
    fmt = next((fmt for fmt in FORMATS.values() if fmt.suffix == suffix), None)
    if fmt is None or not path.exists():
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    return describe(fmt, FLOAT32, path, model)
