"""``finetune``: trains the factors of a compressed model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.commands.prepare import engine_for
from exporter.errors import RecipeError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.candidates import CostKind
from exporter.lowrank.engine import Compressed
from exporter.options.groups import Tuning
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.training.finetune import FineTuned, FineTuner, check_training

_OF_RUNS = {"resume", "distribute"}

USES = (
    "scale",
    "calibration",
    "seed",
    *(o.name for o in Tuning.options() if o.name not in _OF_RUNS),
)
"""The options that ``finetune`` uses."""


def finetune(
    compressed: Compressed,
    baseline: Any,
    *,
    data: Any,
    epochs: int,
    loss: Any = None,
    checkpoints: str | Path | None = None,
    progress: Progress | None = None,
    unit: CostKind = "params",
    **choices: Any,
) -> FineTuned:
    """Trains a compressed model under the current ``tf.distribute`` strategy.

    Args:
        compressed: What ``compress`` returned; its model gets the trained weights, unless
            ``train`` makes a model of other ranks or of full weights: see ``FineTuned``.
        baseline: The model that was compressed; it is the teacher, and not changed.
        data: What ``load_dataset`` returned or takes. Its validation part picks the weights that
            are kept.
        epochs: At the most, of each phase.
        loss: As for ``keras.Model.compile``; by default what the baseline was compiled with, or
            what suits its outputs.
        checkpoints: Folder of checkpoints, from which training goes on if it was cut off; None
            writes none.
        progress: Is told of steps and epochs; by default it is logged.
        unit: What training with ``train="adaptive"`` keeps as it is.
        choices: Options by name: ``train``, ``export_from``, ``batch_size``, ``learning_rate``,
            ``distill``, ``temperature``, ``decay``, ``patience``, ``scale``, ``calibration``,
            ``seed``. Others are refused.

    Raises:
        DataError: If the data do not fit the model, or have no training part.
        RecipeError: If a choice or the loss is none, or channels were removed and the training cuts
            the baseline anew.
        ClusterError: If a worker was lost.
    """
    import tensorflow as tf

    recipe = Recipe.for_verb("finetune", USES, {"finetune": epochs, **choices})
    cut = replace(compressed.cut, channels=None)
    if compressed.channels and recipe.tuning.train != "factored":
        raise RecipeError(
            f"train {recipe.tuning.train!r} cuts the baseline anew, which has channels that were "
            "removed here: let run do both, or train 'factored'."
        )
    network = Network.of(baseline)
    loss = loss if loss is not None else network.compiled_loss
    dataset = fitted(data, network, recipe.source.scale, loss)
    check_training(recipe.tuning, dataset, network)
    tuner = FineTuner(
        engine_for(recipe, network, dataset, progress, cut),
        dataset,
        recipe.tuning,
        unit=unit,
        strategy=tf.distribute.get_strategy(),
        progress=progress or Logged(),
        loss=loss,
        checkpoints=None if checkpoints is None else Path(checkpoints),
    )
    return tuner.run(compressed)
