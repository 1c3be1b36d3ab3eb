"""Loads and checks all that a command works on, before any work starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.card import ModelCard, Normalization
from exporter.commands.artifact import check_batch, quantization_samples
from exporter.commands.budgets import check_budget
from exporter.commands.tracking import MLFLOW
from exporter.data import Dataset, load_dataset
from exporter.errors import DataError, ModelError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.cards import make_card
from exporter.graph.fitting import fit_both
from exporter.graph.imports import import_classes
from exporter.graph.layers import kinds, refuse_channels_first
from exporter.graph.loading import load_model, loss_in_file, translation_note
from exporter.graph.network import Network
from exporter.graph.saving import weights_file
from exporter.lowrank.calibration import Calibration, calibration_from
from exporter.lowrank.candidates import candidates
from exporter.lowrank.engine import Engine
from exporter.lowrank.factorizers import factorizers
from exporter.lowrank.ranks.named import policy_for
from exporter.options.channels import AUTO_CHANNELS
from exporter.options.groups import Cut, Goal
from exporter.options.scale import AUTO
from exporter.output import (
    ARTIFACTS,
    BASELINE_FILE,
    COMPRESSED_FILE,
    CURVES_FILE,
    MANIFEST,
    PLAN_FILE,
    RECIPE_FILE,
    REFERENCE_FILE,
    REJECTED,
    REPORT_FILES,
    TRUNCATED_FILE,
    UNCOMPRESSED,
    UPDATED_FILE,
    artifact_name,
    check_output,
)
from exporter.progress import Progress
from exporter.pruning.pruner import Pruner
from exporter.recipe import Recipe
from exporter.training.finetune import check_training
from exporter.training.reference import REFERENCE_NAME, reference_for
from exporter.verification.baseline import judge_baseline


@dataclass(frozen=True)
class Job:
    """What a run works on, checked."""

    recipe: Recipe
    network: Network
    trained_here: bool
    dataset: Dataset
    samples: Calibration | None
    card: ModelCard
    loss: Any
    output: Path
    entries: tuple[str, ...]


def prepare(
    recipe: Recipe,
    model: Any,
    dataset: Any,
    loss: Any,
    *,
    writes: bool = True,
    exports: bool = True,
    progress: Progress | None = None,
) -> Job:
    """Loads and checks everything that can be wrong, before any work.

    A command that writes no folder, or exports no artifact, minds only the files that it writes.
    """
    for format_name in recipe.export.formats if writes and exports else ():
        FORMATS[format_name].require_extra()
    if recipe.export.mlflow:
        MLFLOW.require("--mlflow")
    if model is not None and recipe.source.model is not None:
        raise RecipeError("Give a model either by recipe.source.model, or as an object, not both.")
    trained_here = model is None and recipe.source.model is None
    if recipe.source.model is not None:
        name = Path(recipe.source.model).stem
    else:
        name = REFERENCE_NAME if trained_here else model.name
    channels = recipe.cut.channels
    removed = f"-channels-{channels}" if channels is not None else ""
    output = Path(recipe.export.output or ARTIFACTS / f"{name}-{recipe.goal.label}{removed}")
    entries = _weight_files(recipe, trained_here)
    if exports:
        names = [artifact_name(FORMATS[name], variant) for name, variant in recipe.artifacts]
        kept = [UNCOMPRESSED] if recipe.export.keep_baseline else []
        drawn = REPORT_FILES if recipe.export.report else ()
        written = (*names, MANIFEST, RECIPE_FILE, REFERENCE_FILE, REJECTED)
        entries = (*written, *drawn, *kept, *entries)
    if writes:
        check_output(output, entries, force=recipe.export.force, progress=progress)
    network, dataset, loss = load(recipe, model, dataset, loss)
    if not trained_here and not recipe.source.allow_poor_baseline:
        check_baseline(network, dataset)
    check_rank(network, recipe.goal, recipe.cut)
    check_budget(recipe, dataset)
    check_batch(recipe, network)
    samples = quantization_samples(recipe, network, dataset)
    if recipe.tuning.finetune:
        check_training(recipe.tuning, dataset, network)
    card = card_of(recipe, network, dataset.normalization)
    return Job(recipe, network, trained_here, dataset, samples, card, loss, output, entries)


def load(
    recipe: Recipe, model: Any, dataset: Any, loss: Any = None
) -> tuple[Network, Dataset, Any]:
    """Returns the model, untrained if it is the reference MLP, the data fitted to it, and the loss.

    The loss is what the model was compiled with, unless it is given.
    """
    source, scale, notes = recipe.source, recipe.source.scale, []
    for table in (kinds, factorizers):
        table()  # What other packages add is checked.
    import_classes(source.imports)
    if source.model is not None:
        model = load_model(source.model)
        notes.append(translation_note(source.model))
    dataset = load_dataset(source.data if dataset is None else dataset)
    if model is None:
        model, scale = reference_for(dataset, source.seed), "unit" if scale == AUTO else scale
    network = Network.of(model)
    refuse_channels_first(network.layers)
    if loss is None and source.model is not None:
        loss, note = _loss_in_file(source.model)
        notes.append(note)
    elif loss is None:
        loss = network.compiled_loss
    network, dataset = fit_both(network, dataset, replace(source, scale=scale), loss)
    return network, replace(dataset, notes=(*dataset.notes, *filter(None, notes))), loss


def _loss_in_file(file: str) -> tuple[Any, str]:
    """Returns what a model was compiled with, and a note if that cannot be read."""
    try:
        return loss_in_file(file), ""
    except ModelError as error:
        return None, f"{error} The loss that suits its outputs and labels is taken instead"


def check_baseline(network: Network, dataset: Dataset) -> None:
    """Raises a DataError, before any work, if a model is no better than a constant on labels."""
    verdict = judge_baseline(network, dataset)
    if verdict.passed:
        return
    reordered = "; the classes seem to stand in another order here"
    raise DataError(
        f"The model is no better than a constant on the labels of data {dataset.name!r}: "
        f"{verdict.told}. {''.join(f'Assumed: {note}. ' for note in dataset.notes)}"
        "The usual causes are values in another scale than those of training (--scale sets it), "
        "another order of classes, or another order of channels"
        f"{reordered if any(output.reordered for output in verdict.outputs) else ''}. "
        "--allow-poor-baseline goes on all the same."
    )


def check_rank(network: Network, goal: Goal, cut: Cut) -> None:
    """Raises a RecipeError, before any work, if a rank does not fit a model."""
    policy = policy_for(goal)
    if policy is not None:
        policy.check(candidates(network, convolution=cut.convolution))


def card_of(
    recipe: Recipe, network: Network, normalization: Mapping[str, Normalization]
) -> ModelCard:
    """Describes a network for its artifacts, by a recipe; see ``make_card``."""
    labels, description = recipe.export.labels, recipe.export.description
    return make_card(normalization, network.outputs, labels=labels, description=description)


def engine_for(
    recipe: Recipe,
    network: Network,
    dataset: Dataset | None,
    progress: Progress | None,
    cut: Cut | None = None,
    *,
    most: int | None = None,
    pruner: Pruner | None = None,
) -> Engine:
    """Returns the engine that factorizes a network, calibrated by data fitted to it.

    Channels that the cut removes are gone by then; ``"auto"`` removes none here.

    ``cut`` stands in for the recipe's own; ``most`` limits the samples of calibration;
    ``pruner`` has weighed the channels of the network before.
    """
    source = recipe.source
    samples = source.calibration if most is None else min(most, source.calibration)
    calibration = calibration_from(network, dataset, samples) if dataset else None
    cut, seed = cut or recipe.cut, source.seed
    if cut.channels in (None, AUTO_CHANNELS):
        return Engine(network, calibration, cut, progress, seed=seed)
    pruner = pruner or Pruner(network, calibration, progress, seed=seed)
    pruned = pruner.prune(cut.channels, "macs" if recipe.goal.counts_macs else "params")
    return Engine(
        pruned.network,
        calibration,
        cut,
        progress,
        seed=seed,
        baseline=network,
        channels=pruned.channels,
    )


def pruner_for(
    recipe: Recipe, network: Network, dataset: Dataset, progress: Progress | None
) -> Pruner:
    """Returns what weighs the channels of a network, calibrated by data fitted to it."""
    calibration = calibration_from(network, dataset, recipe.source.calibration)
    return Pruner(network, calibration, progress, seed=recipe.source.seed)


def _weight_files(recipe: Recipe, trained_here: bool) -> tuple[str, ...]:
    own = [COMPRESSED_FILE]
    if trained_here:
        own.append(BASELINE_FILE)
    if recipe.tuning.finetune:
        own.append(CURVES_FILE)
    if recipe.tuning.projects:
        own += [TRUNCATED_FILE, UPDATED_FILE]
    # Where Keras cannot rebuild a model, its weights are saved instead.
    weights = [weights_file(name).name for name in own if name != CURVES_FILE]
    return (*own, *weights, PLAN_FILE)
