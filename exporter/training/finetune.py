"""Fine-tunes a compressed model, which keeps its size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from exporter.data import Dataset, Split
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.types import Model
from exporter.lowrank.candidates import CostKind
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.ranks.policy import RankPlan
from exporter.options.groups import Tuning
from exporter.progress import Progress, Silent
from exporter.screen import fits_screen
from exporter.training.adaptive import Adaptation, Trials, tried_out
from exporter.training.augmentation import check_augmentation
from exporter.training.data import TrainingData, training_part
from exporter.training.distribution import losses_explained
from exporter.training.factored import Factored
from exporter.training.loop import History, Loop
from exporter.training.normalized import LEAST_BATCH, Normalized, normalizable
from exporter.training.objective import Objective
from exporter.training.phase import Phase
from exporter.training.projected import Projected

NORMALIZED_BATCHES = 8
"""Training batches that mean and variance of a normalisation are first taken from."""


@fits_screen
@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning.

    Attributes:
        compressed: The model to be exported.
        truncated: Keras model of the factors after projected training; None without it.
        updated: Keras model of the full weights after projected training; None without it.
        at_full_rank: Kernels that the projected training did not truncate.
        adaptation: Choice of new ranks by adaptive training; None without it.
    """

    compressed: Compressed
    histories: tuple[History, ...]
    truncated: Model | None = None
    updated: Model | None = None
    at_full_rank: tuple[str, ...] = ()
    adaptation: Adaptation | None = None

    @property
    def interrupted(self) -> bool:
        """Whether training was cut short by Ctrl-C."""
        return any(history.ending == "interrupted" for history in self.histories)


class FineTuner:
    """Fine-tunes one model."""

    def __init__(
        self,
        engine: Engine,
        dataset: Dataset,
        tuning: Tuning,
        *,
        unit: CostKind = "params",
        strategy: Any,
        progress: Progress,
        loss: Any = None,
        checkpoints: Path | None = None,
        on_step: Callable[[Phase, int], None] | None = None,
    ) -> None:
        """Prepares the data, fitted to the model, and the objective, which all phases share.

        ``loss`` is as for ``keras.Model.compile``; None is the default of ``Objective``. Training
        goes on from files in the folder ``checkpoints``; None writes none. ``on_step`` is called
        after every step with the phase and the number of steps.

        Raises:
            DataError: If there are no training data, or no validation data to compare ranks by.
            RecipeError: If the loss is unknown.
        """
        network = engine.network
        check_training(tuning, dataset, network)
        self._engine, self._dataset, self._tuning, self._unit = engine, dataset, tuning, unit
        self._strategy, self._progress = strategy, progress
        self._checkpoints, self._on_step = checkpoints, on_step
        families, losses = network.families(dataset.tasks), network.losses(loss)
        objective = Objective(families, losses, tuning.distill, tuning.temperature, dataset.tasks)
        self._data = self._training_data(dataset, objective, tuning.batch_size)
        if dataset.validation is None:
            progress.note("No validation data: the weights of the last epoch are kept")

    def run(self, compressed: Compressed) -> FineTuned:
        """Trains a model that the engine compressed.

        Raises:
            ClusterError: If a worker was lost.
        """
        train = self._tuning.train
        with losses_explained(self._strategy):
            if train == "adaptive" and compressed.factors:
                return self._adaptive(compressed)
            if not train.startswith("projected"):
                return FineTuned(compressed, (self._factored(compressed),))
            projected = self._projected(compressed.plan)
            if train == "projected":
                return projected
            history = self._factored(projected.compressed)
            return replace(projected, histories=(*projected.histories, history))

    def loss_after_some(self, compressed: Compressed, trainings: int) -> float:
        """Returns the validation loss of a model after a short training, which does not change it.

        So many of these trainings take as long as the whole one.
        """
        return self._short_training(trainings)(compressed)

    def _factored(self, compressed: Compressed, tuning: Tuning | None = None) -> History:
        """Trains the weights of a compressed model in place."""
        normalized = self._normalized(compressed)
        phase = self._phase_of(normalized.compressed)
        history = self._train(phase, compressed.plan, tuning or self._tuning)
        # Variables of a strategy are bound to its devices; those of the model are not.
        _copy_weights(phase.student, normalized.compressed.network)
        normalized.fold_into(compressed.network)
        return history

    def _normalized(self, compressed: Compressed) -> Normalized:
        """Copies a model with batch normalisations, except where batches are too small for them."""
        data = self._data
        paths = normalizable(self._engine, compressed) if data.batch_size >= LEAST_BATCH else []
        batches = data.batches(epoch=0, start=0) if paths else iter(())
        return Normalized(compressed, paths, islice(batches, NORMALIZED_BATCHES))

    def _phase_of(self, compressed: Compressed) -> Factored:
        """Copies a compressed model under the strategy, to train its factors."""
        with self._strategy.scope():
            copy = compressed.copy()
            return Factored(copy.network, copy.factors, self._tuning.decay)

    def _adaptive(self, compressed: Compressed) -> FineTuned:
        engine = self._engine
        trials = Trials(
            engine,
            compressed.plan,
            self._unit,
            self._short_training(1 + len(tried_out(compressed.plan)) + 2),
            strategy=self._strategy,
            progress=self._progress,
            file=self._checkpoints and self._checkpoints / "trials.npz",
        )
        try:
            plan, adaptation = trials.run()
        except KeyboardInterrupt:
            # Other workers would wait for this one for ever.
            if self._strategy.num_replicas_in_sync > 1:
                raise
            self._progress.note(
                "Interrupted while ranks were tried out: goes on with those of the cut, without "
                "training; Ctrl-C once more stops all"
            )
            history = self._factored(compressed, replace(self._tuning, finetune=0))
            history = replace(history, ending="interrupted")
            return FineTuned(compressed, (history,))
        if adaptation.taken:
            compressed = engine.factorize(plan)
        return FineTuned(compressed, (self._factored(compressed),), adaptation=adaptation)

    def _training_data(self, dataset: Dataset, objective: Objective, batch: int) -> TrainingData:
        engine, augment = self._engine, self._tuning.augment
        return TrainingData(
            dataset, engine.baseline, objective, batch, seed=engine.seed, augment=augment
        )

    def _short_training(self, trials: int) -> Callable[[Compressed], float]:
        """Builds a training so short that all trials together are as long as the training."""
        data = self._data
        epochs, rest = divmod(self._tuning.finetune, trials)
        if not epochs:
            (_, whole), batch = training_part(self._dataset), data.batch_size
            samples = max(batch, len(whole) * rest // trials // batch * batch)
            thinned = replace(self._dataset, train=whole.take(slice(samples)), stream=None)
            data = self._training_data(thinned, data.objective, batch)
        tuning = replace(self._tuning, finetune=max(1, epochs), patience=0)

        def loss_after(compressed: Compressed) -> float:
            phase = self._phase_of(self._normalized(compressed).compressed)
            loop = Loop(phase, data, tuning, strategy=self._strategy, progress=Silent())
            history = loop.run()
            if history.ending == "interrupted":
                raise KeyboardInterrupt
            loss = history.epochs[-1].validation_loss
            return math.nan if loss is None else loss

        return loss_after

    def _projected(self, plan: RankPlan) -> FineTuned:
        engine = self._engine
        with self._strategy.scope():
            phase = Projected(engine.network, plan.ranks)
        if phase.left_out:
            self._progress.note(
                f"Trained at full rank, and cut afterwards: {', '.join(phase.left_out)}"
            )
        history = self._train(phase, plan, self._tuning)
        updated = engine.network.copy()
        _copy_weights(phase.finish(), updated)
        cut = replace(engine.cut, fold=False)
        by_weights = Engine(updated, None, replace(cut, method="svd"), self._progress)
        compressed = truncated = by_weights.factorize(plan)
        if self._tuning.export_from == "updated":
            anew = Engine(updated, engine.calibration, cut, self._progress, seed=engine.seed)
            compressed = anew.factorize(plan)
        return FineTuned(compressed, (history,), truncated.model, updated.model, phase.left_out)

    def _train(self, phase: Phase, plan: RankPlan, tuning: Tuning) -> History:
        ranks = sorted(set(plan.ranks.values())) or [0]
        several = f"ranks {ranks[0]} to {ranks[-1]}"
        loop = Loop(
            phase,
            self._data,
            tuning,
            strategy=self._strategy,
            progress=self._progress,
            checkpoint=self._checkpoints and self._checkpoints / f"{phase.name}.npz",
            label=f"Fine-tuning, {phase.name}, {several if ranks[1:] else f'rank {ranks[0]}'}",
            on_step=self._on_step,
        )
        return loop.run()


def check_training(tuning: Tuning, dataset: Dataset, network: Network) -> Split:
    """Returns the training part of data, if they suffice to train on and to compare ranks by.

    Raises:
        DataError: If they do not.
    """
    _, train = training_part(dataset)
    check_augmentation(tuning.augment, network, train)
    batch, validation = network.fixed_batch or 1, dataset.validation
    if tuning.train == "adaptive" and (validation is None or len(validation) < batch):
        raise DataError(
            f"Adaptive training compares ranks on validation data, {batch} samples at least. "
            f"Received: data {dataset.name!r} with {len(validation) if validation else 0}."
        )
    return train


def _copy_weights(source: Network, target: Network) -> None:
    target.model.set_weights([weight.numpy() for weight in source.model.weights])
