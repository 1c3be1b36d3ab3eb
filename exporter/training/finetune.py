"""Fine-tuning: a compressed model goes in, a better one of the same ranks comes out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.baseline import fitted
from exporter.data import Dataset
from exporter.distributions import output_families
from exporter.lowrank.compress import options_for
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.ranks import RankPlan
from exporter.lowrank.rewrite import rewrite
from exporter.lowrank.statistics import calibration_from
from exporter.metrics import is_classes
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe
from exporter.training.course import Course, training_part
from exporter.training.distribution import losses_explained
from exporter.training.factored import Factored
from exporter.training.loop import History, Loop, Settings
from exporter.training.objective import Objective, known_losses
from exporter.training.phase import Phase
from exporter.training.projected import Projected


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning yields.

    Attributes:
        compressed: The model to be exported.
        histories: Of each phase.
        truncated: The model that the projected training trained at; None if there was none.
        updated: Its full weights; None likewise.
        at_full_rank: Kernels that the projected training did not truncate.
    """

    compressed: Compressed
    histories: tuple[History, ...]
    truncated: Any = None
    updated: Any = None
    at_full_rank: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C cut it short."""
        return any(history.ending == "interrupted" for history in self.histories)


class FineTuner:
    """Fine-tunes one model by a recipe."""

    def __init__(
        self,
        engine: Engine,
        dataset: Dataset,
        recipe: Recipe,
        *,
        strategy: Any,
        progress: Progress,
        loss: Any = None,
        checkpoints: Path | None = None,
        on_step: Callable[[Phase, int], None] | None = None,
    ) -> None:
        """Prepares what all phases share.

        Args:
            engine: Of the baseline.
            dataset: Fitted to the model.
            recipe: Says how.
            strategy: Of ``tf.distribute``.
            progress: Is told of steps and epochs.
            loss: As for ``keras.Model.compile``; None is the cross-entropy of distributions and the
                squared error of values.
            checkpoints: Folder of checkpoints, from which training goes on; None writes none.
            on_step: Is called after every step with the phase and the number of steps so far.

        Raises:
            DataError: If there is nothing to train on.
            RecipeError: If the loss is none.
        """
        self._engine, self._recipe, self._strategy = engine, recipe, strategy
        self._progress, self._checkpoints, self._on_step = progress, checkpoints, on_step
        train = dataset.train
        labels = {} if train is None else train.labels
        classes = {name for name, array in labels.items() if is_classes(array)}
        self._objective = Objective(
            output_families(engine.model, classes),
            known_losses(loss, engine.model),
            recipe.distill,
            recipe.temperature,
        )
        self._course = Course(dataset, engine.model, self._objective, recipe.batch_size)
        if dataset.validation is None:
            progress.note("No validation data: the weights of the last epoch are kept")

    def run(self, compressed: Compressed) -> FineTuned:
        """Trains.

        Args:
            compressed: What the engine cut.

        Raises:
            ClusterError: If a worker was lost.
        """
        with losses_explained(self._strategy):
            return self._run(compressed)

    def _run(self, compressed: Compressed) -> FineTuned:
        if self._recipe.train == "factored":
            model, history = self._factored(compressed)
            return FineTuned(model, (history,))
        projected = self._projected(compressed.plan)
        if self._recipe.train == "projected":
            return projected
        model, history = self._factored(projected.compressed)
        return replace(projected, compressed=model, histories=(*projected.histories, history))

    def _factored(self, compressed: Compressed) -> tuple[Compressed, History]:
        with self._strategy.scope():
            copy = compressed.copy()
            phase = Factored(copy.model, copy.factors, self._recipe.decay)
        history = self._train(phase, compressed.plan)
        # Variables of a strategy are bound to its devices; those of the model are not.
        _copy_weights(copy.model, compressed.model)
        return compressed, history

    def _projected(self, plan: RankPlan) -> FineTuned:
        recipe, engine = self._recipe, self._engine
        with self._strategy.scope():
            phase = Projected(engine.model, plan.ranks)
        if phase.left_out:
            self._progress.note(
                f"Trained at full rank, and cut afterwards: {', '.join(phase.left_out)}"
            )
        history = self._train(phase, plan)
        updated = rewrite(engine.model, {})
        _copy_weights(phase.finish(), updated)
        options = replace(options_for(recipe), fold=False)
        plainly = Engine(updated, None, replace(options, method="svd"), self._progress)
        truncated = plainly.carry_out(plan)
        compressed = truncated
        if recipe.export_from == "updated":
            anew = Engine(updated, engine.calibration, options, self._progress)
            compressed = anew.carry_out(plan)
        return FineTuned(compressed, (history,), truncated.model, updated, phase.left_out)

    def _train(self, phase: Phase, plan: RankPlan) -> History:
        recipe = self._recipe
        settings = Settings(
            epochs=recipe.finetune,
            learning_rate=recipe.learning_rate,
            patience=recipe.patience,
            seed=recipe.seed,
        )
        file = self._checkpoints and self._checkpoints / f"{phase.name}.npz"
        loop = Loop(
            phase,
            self._objective,
            self._course,
            settings,
            strategy=self._strategy,
            progress=self._progress,
            checkpoint=file,
            label=f"Fine-tuning, {phase.name}, {_ranks(plan)}",
            on_step=self._on_step,
        )
        return loop.run()


def finetune(
    compressed: Compressed,
    baseline: Any,
    *,
    data: Dataset,
    epochs: int,
    loss: Any = None,
    checkpoints: str | Path | None = None,
    progress: Progress | None = None,
    **choices: Any,
) -> FineTuned:
    """Trains a compressed model under the current ``tf.distribute`` strategy.

    Args:
        compressed: What ``compress`` returned; its model gets the trained weights.
        baseline: The model that was compressed; it is the teacher, and not changed.
        data: What ``load_dataset`` returned. Its validation part picks the weights that are kept.
        epochs: At the most, of each phase.
        loss: As for ``keras.Model.compile``; by default what the baseline was compiled with, or
            what suits its outputs.
        checkpoints: Folder of checkpoints, from which training goes on if it was cut off; None
            writes none.
        progress: Is told of steps and epochs; silent by default.
        choices: Other fields of ``Recipe``: ``train``, ``export_from``, ``batch_size``,
            ``learning_rate``, ``distill``, ``temperature``, ``decay``, ``patience``,
            ``seed``; and those that the model was compressed by.

    Raises:
        DataError: If the data do not fit the model, or have no training part.
        RecipeError: If a choice or the loss is none.
        ClusterError: If a worker was lost.
    """
    import tensorflow as tf

    recipe = Recipe(finetune=epochs, **choices)
    dataset = fitted(data, baseline)
    training_part(dataset)
    calibration = calibration_from(baseline, dataset, recipe.calibration)
    tuner = FineTuner(
        Engine(baseline, calibration, options_for(recipe), progress),
        dataset,
        recipe,
        strategy=tf.distribute.get_strategy(),
        progress=progress or Silent(),
        loss=loss if loss is not None else getattr(baseline, "loss", None),
        checkpoints=None if checkpoints is None else Path(checkpoints),
    )
    return tuner.run(compressed)


def _ranks(plan: RankPlan) -> str:
    ranks = sorted(set(plan.ranks.values())) or [0]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _copy_weights(source: Any, target: Any) -> None:
    target.set_weights([weight.numpy() for weight in source.weights])
