"""``export``: converts a model without verifying what comes of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.card import ModelCard
from exporter.commands.artifact import ArtifactWriter, check_batch, quantization_samples
from exporter.commands.prepare import card_of, load
from exporter.data import Dataset
from exporter.datasets import NO_DATA
from exporter.disk import scratch_folder
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, describe
from exporter.formats.cards import check_card
from exporter.graph.fitting import fit_both, fitted
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed
from exporter.output import ARTIFACTS, artifact_name, check_output, staged_output
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe

USES = (
    "quantization",
    "formats",
    "output",
    "force",
    "batch",
    "opset",
    "scale",
    "size",
    "calibration",
    "seed",
)
"""The groups and options that ``export`` uses."""


def export(
    model: Any,
    directory: str | Path,
    formats: Sequence[str] = ("tflite",),
    *,
    data: Any = NO_DATA,
    card: ModelCard | None = None,
    force: bool = False,
    **choices: Any,
) -> tuple[Artifact, ...]:
    """Converts a model, compressed or not, without verifying it; see ``verify`` and ``run``.

    Args:
        model: A built Keras model, or what ``compress`` returned.
        directory: Folder to write to; made if it does not exist.
        formats: Names of formats; ``"all"`` stands for every one that is installed.
        data: What ``load_dataset`` returned or takes; variants that are calibrated need its
            training part.
        card: What the artifacts tell of the model, such as names of its classes.
        force: Whether artifacts that are there already are replaced.
        choices: Options by name: ``batch``, ``opset``, ``quantize``, ``io_type``, ``granularity``,
            ``ranges``, ``gauge``, ``calibration``, ``seed``. Others are refused.

    Returns:
        The artifacts, in the order of the formats and of their variants.

    Raises:
        InputError: If an argument cannot be used, a format's packages are not installed, or an
            artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    chosen = {"formats": formats, "output": str(directory), "force": force, **choices}
    recipe = Recipe.for_verb("export", USES, chosen)
    if isinstance(model, Compressed):
        compressed, dataset = model, fitted(data, model.network, recipe.source.scale)
    else:
        network, dataset = fit_both(Network.of(model), data, recipe.source)
        compressed = Compressed.of(network)
    card = card or ModelCard()
    check_card(card, compressed.network.inputs, compressed.network.outputs)
    return _export(recipe, compressed, dataset, card, target=Path(directory), progress=Logged())


def export_recipe(recipe: Recipe, *, progress: Progress | None = None) -> tuple[Artifact, ...]:
    """Converts the model of a recipe as it is; see ``export``.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used.
        ConversionError: If a converter fails; nothing is written then.
    """
    network, dataset, _ = load(recipe, None, None)
    card = card_of(recipe, network, dataset.normalization)
    target = Path(
        recipe.export.output or ARTIFACTS / Path(recipe.source.model or network.name).stem
    )
    compressed, progress = Compressed.of(network), progress or Logged()
    return _export(recipe, compressed, dataset, card, target=target, progress=progress)


def _export(
    recipe: Recipe,
    compressed: Compressed,
    dataset: Dataset,
    card: ModelCard,
    *,
    target: Path,
    progress: Progress,
) -> tuple[Artifact, ...]:
    chosen = [(FORMATS[name], variant) for name, variant in recipe.artifacts]
    for fmt, _ in chosen:
        fmt.require_extra()
    names, network = [artifact_name(*each) for each in chosen], compressed.network
    check_output(target, names, force=recipe.export.force, progress=progress)
    check_batch(recipe, network)
    samples = quantization_samples(recipe, network, dataset)
    writer = ArtifactWriter(recipe, compressed, samples, card)
    artifacts = []
    with (
        staged_output(target, names, force=recipe.export.force, progress=progress) as staging,
        scratch_folder() as scratch,
        progress.track("Exporting", len(chosen)) as advance,
    ):
        for number, (fmt, variant) in enumerate(chosen):
            advance(number, f"{fmt.name}, {variant}")
            path = staging / artifact_name(fmt, variant)
            writer.write(fmt, variant, path, scratch)
            artifact = describe(fmt, variant, path, network)
            artifacts.append(replace(artifact, path=target / path.name))
    return tuple(artifacts)
