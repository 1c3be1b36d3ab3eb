"""Fine-tuning: a compressed model goes in, a better one that is no larger comes out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.data import Dataset
from exporter.data.metrics import is_classes
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.types import Model
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.planner import Unit
from exporter.lowrank.ranks.policy import RankPlan
from exporter.options.groups import Tuning
from exporter.progress import Progress, Silent
from exporter.training.adaptive import Adaptation, Trials, tried_out
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
        truncated: The Keras model that the projected training trained at; None if there was none.
        updated: The Keras model of its full weights; None if there was none.
        at_full_rank: Kernels that the projected training did not truncate.
        adaptation: How ranks were chosen anew; None if they were not.
    """

    compressed: Compressed
    histories: tuple[History, ...]
    truncated: Model | None = None
    updated: Model | None = None
    at_full_rank: tuple[str, ...] = ()
    adaptation: Adaptation | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C cut it short."""
        return any(history.ending == "interrupted" for history in self.histories)


class FineTuner:
    """Fine-tunes one model."""

    def __init__(
        self,
        engine: Engine,
        dataset: Dataset,
        tuning: Tuning,
        *,
        unit: Unit = "params",
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
            tuning: Says how.
            unit: What adaptive training keeps as it is.
            strategy: Of ``tf.distribute``.
            progress: Is told of steps and epochs.
            loss: As for ``keras.Model.compile``; None is the cross-entropy of distributions and the
                squared error of values.
            checkpoints: Folder of checkpoints, from which training goes on; None writes none.
            on_step: Is called after every step with the phase and the number of steps so far.

        Raises:
            DataError: If there is nothing to train on, or nothing to try out ranks by.
            RecipeError: If the loss is none.
        """
        check_training(tuning, dataset, engine.network)
        self._engine, self._tuning, self._strategy = engine, tuning, strategy
        self._unit = unit
        self._progress, self._checkpoints, self._on_step = progress, checkpoints, on_step
        self._dataset = dataset
        train = dataset.train
        labels = {} if train is None else train.labels
        classes = {name for name, array in labels.items() if is_classes(array)}
        self._objective = Objective(
            engine.network.families(classes),
            known_losses(loss, engine.network),
            tuning.distill,
            tuning.temperature,
        )
        self._course = Course(dataset, engine.network, self._objective, tuning.batch_size)
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
        train = self._tuning.train
        if train == "adaptive" and compressed.factors:
            return self._adaptive(compressed)
        if not train.startswith("projected"):
            model, history = self._factored(compressed)
            return FineTuned(model, (history,))
        projected = self._projected(compressed.plan)
        if train == "projected":
            return projected
        model, history = self._factored(projected.compressed)
        return replace(projected, compressed=model, histories=(*projected.histories, history))

    def _factored(
        self, compressed: Compressed, *, epochs: int | None = None
    ) -> tuple[Compressed, History]:
        phase = self._phase_of(compressed)
        history = self._train(phase, compressed.plan, epochs=epochs)
        # Variables of a strategy are bound to its devices; those of the model are not.
        _copy_weights(phase.student, compressed.network)
        return compressed, history

    def _phase_of(self, compressed: Compressed) -> Factored:
        """Makes a copy, whose factors are to be trained."""
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
            model, history = self._factored(compressed, epochs=0)
            return FineTuned(model, (replace(history, ending="interrupted"),))
        if adaptation.taken:
            compressed = engine.factorize(plan)
        model, history = self._factored(compressed)
        return FineTuned(model, (history,), adaptation=adaptation)

    def _short_training(self, trials: int) -> Callable[[Compressed], float]:
        """Returns what trains so shortly that all trials together are as long as the training."""
        tuning, course = self._tuning, self._course
        epochs, rest = divmod(tuning.finetune, trials)
        if not epochs:
            _, whole = training_part(self._dataset)
            batch = course.fixed_batch or tuning.batch_size
            samples = max(batch, len(whole) * rest // trials // batch * batch)
            thinned = replace(self._dataset, train=whole.take(slice(samples)), stream=None)
            course = Course(thinned, self._engine.network, self._objective, tuning.batch_size)
        settings = replace(self._settings, epochs=max(1, epochs), patience=0)

        def loss_after(compressed: Compressed) -> float:
            loop = Loop(
                self._phase_of(compressed),
                self._objective,
                course,
                settings,
                strategy=self._strategy,
                progress=Silent(),
            )
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
        history = self._train(phase, plan)
        updated = engine.network.copy()
        _copy_weights(phase.finish(), updated)
        cut = replace(engine.cut, fold=False)
        plainly = Engine(updated, None, replace(cut, method="svd"), self._progress)
        truncated = plainly.factorize(plan)
        compressed = truncated
        if self._tuning.export_from == "updated":
            anew = Engine(updated, engine.calibration, cut, self._progress, seed=engine.seed)
            compressed = anew.factorize(plan)
        return FineTuned(compressed, (history,), truncated.model, updated.model, phase.left_out)

    def _train(self, phase: Phase, plan: RankPlan, *, epochs: int | None = None) -> History:
        settings = self._settings
        if epochs is not None:
            settings = replace(settings, epochs=epochs)
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

    @property
    def _settings(self) -> Settings:
        tuning = self._tuning
        return Settings(
            epochs=tuning.finetune,
            learning_rate=tuning.learning_rate,
            patience=tuning.patience,
            seed=self._engine.seed,
        )


def check_training(tuning: Tuning, dataset: Dataset, network: Network) -> None:
    """Finds out, without computing, whether the data are enough to train on.

    Raises:
        DataError: If there is nothing to train on, or nothing to try out ranks by.
    """
    training_part(dataset)
    batch, validation = network.fixed_batch or 1, dataset.validation
    if tuning.train == "adaptive" and (validation is None or len(validation) < batch):
        raise DataError(
            f"Adaptive training compares ranks on validation data, {batch} samples at least. "
            f"Received: data {dataset.name!r} with {len(validation) if validation else 0}."
        )


def _ranks(plan: RankPlan) -> str:
    ranks = sorted(set(plan.ranks.values())) or [0]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _copy_weights(source: Network, target: Network) -> None:
    target.model.set_weights([weight.numpy() for weight in source.model.weights])
