"""Trains one phase: epochs, best weights, checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporter.inputs import made_of
from exporter.options.groups import Tuning
from exporter.progress import Progress
from exporter.training.checkpoint import Checkpoint, check_like, load_checkpoint, save_checkpoint
from exporter.training.data import Batch, Score, TrainingData
from exporter.training.distribution import clipped, from_first, is_chief, shared_out
from exporter.training.phase import Phase

Ending = Literal["finished", "no better", "interrupted", "diverged"]

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written after each epoch, and within an epoch that takes longer than this."""

WARM_UP = 0.05
"""Part of all steps in which the learning rate rises."""

FINAL_RATE = 0.01
"""Part of the learning rate that the cosine ends at."""

TEACHING = 0.5
"""Part of the epochs in which the baseline teaches, where no validation data tell when to stop."""

TOLERANCE = 0.5
"""Standard errors by which the accuracy of a later epoch may be below the best, for its weights to
be kept. It is less than one, since epochs are wrong on much the same samples."""


@dataclass(frozen=True)
class Epoch:
    """Figures at the end of an epoch; number 0 is the start, before any step.

    Attributes:
        loss: Mean over the training samples during the epoch; None at the start.
        validation_loss: None without validation data.
        accuracy: Validation accuracy, 0 to 1, averaged over the outputs that classify, if any.
        seconds: Time since the training began, including processes that were cut off.
    """

    number: int
    loss: float | None
    validation_loss: float | None
    accuracy: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class History:
    """Record of one phase, whose epochs begin with the start, with the reason why it ended.

    Attributes:
        best: Number of the epoch whose weights were kept.
        seconds: Duration, including processes that were cut off.
    """

    phase: str
    epochs: tuple[Epoch, ...]
    best: int
    ending: Ending
    steps: int
    seconds: float


class Loop:
    """Trains one phase, and leaves the best weights in it."""

    def __init__(
        self,
        phase: Phase,
        data: TrainingData,
        tuning: Tuning,
        *,
        strategy: Any,
        progress: Progress,
        checkpoint: Path | None = None,
        label: str = "Fine-tuning",
        on_step: Callable[[Phase, int], None] | None = None,
    ) -> None:
        """Builds the optimizer and the step, under a ``tf.distribute`` strategy.

        Training goes on from the file ``checkpoint`` if it exists; without a name, none is written.
        ``on_step`` is called after every step with the phase and the number of steps so far.
        """
        import tensorflow as tf

        self._phase, self._data, self._tuning = phase, data, tuning
        self._strategy, self._progress = strategy, progress
        self._file, self._label, self._on_step = checkpoint, label, on_step
        with strategy.scope():
            self._optimizer = _optimizer(tuning, data.steps_per_epoch)
            self._optimizer.build(phase.trained)
        self._runner = phase.student.runner()
        self._prepare = tf.function(phase.prepare, autograph=False)
        self._random_states = phase.student.random_states
        self._objective = data.objective
        self._trace_step()
        self._at = _Position()
        self._best: Sequence[NDArray[Any]] = []

    def _trace_step(self) -> None:
        import tensorflow as tf

        # Traced for each size of batch, two at most. With a free size, gradients would compute
        # what they only take the shape of, such as the full product of inputs and full weights.
        self._step = tf.function(self._distributed_step, autograph=False)

    def run(self) -> History:
        """Trains until the epochs are over, validation gets no better, or Ctrl-C is pressed."""
        self._started = time.perf_counter()
        self._resume()
        at = self._at
        total = self._tuning.finetune * (self._data.steps_per_epoch or 1)
        try:
            with self._progress.track(self._label, total) as advance:
                if not at.epochs:
                    self._close_epoch(0, None)
                while at.ending is None:
                    self._run_epoch(advance)
        except KeyboardInterrupt:
            # Other workers would wait for this one for ever.
            if self._strategy.num_replicas_in_sync > 1 or not self._best:
                raise
            at.ending = "interrupted"
            self._progress.note(
                f"Interrupted in epoch {at.epoch}: goes on with the best so far, that of "
                f"epoch {at.best}; Ctrl-C once more stops all"
            )
        _assign(self._phase.state, from_first(self._strategy, self._best))
        ending = at.ending or "finished"
        name, seconds = self._phase.name, self._seconds()
        return History(name, tuple(at.epochs), at.best, ending, at.total_steps, seconds)

    def _run_epoch(self, advance: Callable[[int, str], None]) -> None:
        at = self._at
        saved = time.perf_counter()
        if 0 < self._objective.distill < 1 and not at.taught:
            # From now on, the baseline's outputs are not computed.
            self._objective = dataclasses.replace(self._objective, distill=0.0)
            self._trace_step()
        taught = self._objective.distill > 0
        for batch in self._data.batches(epoch=at.epoch, start=at.step, taught=taught):
            at.loss += self._take_step(batch) * batch.samples
            at.samples += batch.samples
            at.step += 1
            at.total_steps += 1
            status = f"epoch {at.epoch}/{self._tuning.finetune}, loss {at.loss / at.samples:.4f}"
            if (accuracy := at.epochs[-1].accuracy) is not None:
                status += f", validation accuracy {accuracy:.2%}"
            advance(at.total_steps, status)
            if self._on_step is not None:
                self._on_step(self._phase, at.total_steps)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        self._close_epoch(at.epoch, at.loss / max(1, at.samples))
        at.epoch, at.step, at.loss, at.samples = at.epoch + 1, 0, 0.0, 0
        self._save()

    def _take_step(self, batch: Batch) -> float:
        import tensorflow as tf

        # Models bring states of their own, which differ from process to process.
        for number, state in enumerate(self._random_states):
            drawn = np.random.SeedSequence((self._data.seed, number, self._at.total_steps))
            state.assign(drawn.generate_state(2))
        share = tf.constant(1 / batch.samples, tf.float32)
        return float(self._step(shared_out(self._strategy, batch, batch.samples), share))

    def _distributed_step(self, batch: Batch, share: Any) -> Any:
        import tensorflow as tf

        self._phase.prepare()
        losses = self._strategy.run(self._replica_step, args=(batch, share))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, batch: Batch, share: Any) -> Any:
        phase = self._phase
        loss, gradients = phase.gradients(self._objective, batch, share)
        if phase.clip is not None:
            gradients = clipped(gradients, phase.clip)
        self._optimizer.apply(gradients, phase.trained)
        return loss

    def _close_epoch(self, number: int, loss: float | None) -> None:
        """Evaluates, keeps the best weights, and decides whether to go on."""
        at, tuning = self._at, self._tuning
        self._prepare()
        score = self._data.evaluate(self._runner)
        rate = float(self._optimizer.learning_rate)
        epoch = Epoch(number, loss, score.loss, score.accuracy, rate, self._seconds())
        at.epochs.append(epoch)
        diverged = not all(math.isfinite(x) for x in (loss, score.loss) if x is not None)
        peak = _best_of(at.epochs)
        if not diverged and _is_kept(epoch, at.epochs[0], peak, score.samples):
            at.best = number
            self._best = _values(self._phase.state)
        if number:
            self._progress.note(_line(epoch, tuning.finetune))
        if diverged:
            at.ending = "diverged"
            self._progress.note(
                f"Diverged in epoch {number}: goes on with the best so far, that of epoch "
                f"{at.best}. Lower the learning rate, now {tuning.learning_rate:g}"
            )
        elif number >= tuning.finetune:
            at.ending = "finished"
        elif tuning.patience and number - peak.number >= tuning.patience:
            at.ending = "no better"
        at.taught = at.taught and not self._has_caught_up(number, score)
        # All workers must agree, even where their processors round differently.
        goes_on, taught = from_first(self._strategy, [float(at.ending is None), float(at.taught)])
        at.taught = bool(taught)
        if not goes_on and at.ending is None:
            at.ending = "finished"

    def _has_caught_up(self, epoch: int, score: Score) -> bool:
        """Tells whether a model has nothing more to learn from the baseline.

        The baseline helps as long as it is better; then it holds back what could be better than it
        (Cho and Hariharan, "On the efficacy of knowledge distillation", 2019, stop it early).
        """
        if not self._objective.distill:
            return True
        baseline = self._data.baseline
        if score.accuracy is not None and baseline.accuracy is not None:
            return score.accuracy >= baseline.accuracy
        if score.loss is not None and baseline.loss is not None:
            return score.loss <= baseline.loss
        return epoch >= TEACHING * self._tuning.finetune

    def _seconds(self) -> float:
        return self._at.seconds + time.perf_counter() - self._started

    def _save(self) -> None:
        if self._file is None or not is_chief(self._strategy):
            return
        at = dataclasses.replace(self._at, seconds=self._seconds())
        state, optimizer = _values(self._phase.state), _values(self._optimizer.variables)
        checkpoint = Checkpoint(state, optimizer, self._best, dataclasses.asdict(at))
        save_checkpoint(checkpoint, self._file)

    def _resume(self) -> None:
        """Goes on from the first worker's checkpoint, or from its weights if there is none."""
        chief = is_chief(self._strategy)
        variables = [*self._phase.state, *self._optimizer.variables]

        def read(checkpoint: Checkpoint) -> tuple[_Position, Checkpoint]:
            check_like([*checkpoint.state, *checkpoint.optimizer], variables)
            check_like(checkpoint.best, self._phase.state if checkpoint.best else [])
            return _Position.read(checkpoint.progress), checkpoint

        file = self._file if chief else None
        if file is not None and (found := load_checkpoint(file, read, self._progress)):
            self._at, checkpoint = found
            self._best = checkpoint.best
            _assign(variables, [*checkpoint.state, *checkpoint.optimizer])
            self._progress.note(
                f"Goes on from the checkpoint in epoch {self._at.epoch}, step {self._at.step}"
            )
        at = self._at
        place = [len(at.epochs), at.epoch, at.step, at.total_steps, at.best, at.taught]
        closed, at.epoch, at.step, at.total_steps, at.best, taught = (
            int(value) for value in from_first(self._strategy, place)
        )
        at.taught = bool(taught)
        if not chief:
            # Only the first worker knows of former epochs, and only it decides.
            at.epochs = [Epoch(0, None, None, None, 0.0, 0.0)] * closed
            self._best = _values(self._phase.state)
        if self._strategy.num_replicas_in_sync > 1:
            _assign(variables, from_first(self._strategy, _values(variables)))


@dataclass
class _Position:
    """Progress of a training, which a checkpoint keeps."""

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    samples: int = 0
    best: int = 0
    taught: bool = True
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    ending: Ending | None = None

    @classmethod
    def read(cls, values: Any) -> "_Position":
        """Reads what a checkpoint kept; raises a ValueError if that is damaged."""
        at = made_of(cls, values)
        at.epochs = [made_of(Epoch, epoch) for epoch in at.epochs]
        counts = (at.epoch - 1, at.step, at.total_steps, at.samples, at.best)
        if min(counts) < 0 or at.best > len(at.epochs) or (at.epoch > 1 and not at.epochs):
            raise ValueError("its position is none.")
        return at


def _optimizer(tuning: Tuning, steps_per_epoch: int | None) -> Any:
    """Builds Adam, with warm-up and cosine decay where the number of steps is known."""
    import keras

    rate: Any = tuning.learning_rate
    if steps_per_epoch is not None:
        total = steps_per_epoch * tuning.finetune
        warm_up = int(WARM_UP * total)
        rate = keras.optimizers.schedules.CosineDecay(
            tuning.learning_rate / max(1, warm_up),
            max(1, total - warm_up),
            alpha=FINAL_RATE,
            warmup_target=tuning.learning_rate,
            warmup_steps=warm_up,
        )
    return keras.optimizers.Adam(rate)


def _values(variables: Sequence[Any]) -> list[NDArray[Any]]:
    return [variable.numpy() for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _best_of(epochs: Sequence[Epoch]) -> Epoch:
    """Returns the first epoch of the highest accuracy and, among equals, of the lowest loss.

    Without validation data it is the last epoch.
    """
    known = [e for e in epochs if e.validation_loss is not None]
    best = max(known, key=lambda e: (e.accuracy or 0.0, -(e.validation_loss or 0.0)), default=None)
    return best or epochs[-1]


def _is_kept(epoch: Epoch, start: Epoch, peak: Epoch, samples: int) -> bool:
    """Tells whether the weights of an epoch replace the weights kept so far.

    The epoch must be better than the start. If the validation data cannot tell its accuracy from
    the best, its weights are kept, since its steps were the smallest: the highest of many noisy
    accuracies is often that of an early epoch. Without accuracies, the least loss decides.
    """
    if epoch is peak:
        return True
    if epoch.accuracy is None or peak.accuracy is None or _best_of([start, epoch]) is start:
        return False
    tolerance = TOLERANCE * math.sqrt(peak.accuracy * (1 - peak.accuracy) / samples)
    return epoch.accuracy >= peak.accuracy - tolerance


def _line(epoch: Epoch, epochs: int) -> str:
    parts = []
    if epoch.loss is not None:
        parts.append(f"loss {epoch.loss:.4f}")
    if epoch.validation_loss is not None:
        parts.append(f"validation loss {epoch.validation_loss:.4f}")
    if epoch.accuracy is not None:
        parts.append(f"validation accuracy {epoch.accuracy:.2%}")
    return f"Epoch {epoch.number} of {epochs}: {', '.join([*parts, f'{epoch.seconds:.0f} s'])}"
