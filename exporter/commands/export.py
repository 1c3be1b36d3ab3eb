"""Two stations of the run on their own: writing artifacts, and verifying one."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.card import ModelCard
from exporter.commands.artifact import artifact_name, export_options, write_artifact
from exporter.commands.gauges import Gauges, quantization_samples
from exporter.commands.verify import as_compressed
from exporter.data import Dataset, load_dataset
from exporter.datasets import NO_DATA
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, describe
from exporter.formats.cards import check_card
from exporter.graph.fitting import fitted
from exporter.output import staged_output
from exporter.recipe.recipe import Recipe


def export(
    model: Any,
    directory: str | Path,
    formats: Sequence[str] = ("tflite",),
    *,
    data: Dataset | str = NO_DATA,
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
        choices: Other fields of ``Recipe``: ``opset``, ``quantize``, ``io_type``, ``granularity``,
            ``ranges``, ``gauge``, ``calibration``, ``seed``.

    Returns:
        The artifacts, in the order of the formats and of their variants.

    Raises:
        InputError: If an argument cannot be used, a format's packages are not installed, or an
            artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    recipe = Recipe(formats=tuple(formats), **choices)
    chosen = [(FORMATS[name], variant) for name, variant in recipe.artifacts]
    for fmt, _ in chosen:
        fmt.require_extra()
    compressed = as_compressed(model)
    network = compressed.network
    card = card or ModelCard()
    check_card(card, network.inputs, network.outputs)
    dataset = fitted(load_dataset(data) if isinstance(data, str) else data, network)
    samples = quantization_samples(recipe, network, dataset)
    target = Path(directory)
    gauges = Gauges(recipe, compressed, samples)
    artifacts = []
    with (
        staged_output(target, [artifact_name(*each) for each in chosen], force=force) as staging,
        tempfile.TemporaryDirectory(prefix="exporter-") as scratch,
    ):
        for fmt, variant in chosen:
            path = staging / artifact_name(fmt, variant)
            write_artifact(
                fmt,
                gauges.network(fmt.variant(variant)),
                path,
                export_options(recipe, fmt, variant, samples, card),
                granularity=recipe.granularity,
                samples=samples,
                scratch=Path(scratch),
            )
            artifact = describe(fmt, variant, path, network)
            artifacts.append(replace(artifact, path=target / path.name))
    return tuple(artifacts)
