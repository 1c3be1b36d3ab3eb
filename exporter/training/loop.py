"""The loop that all ways to train share: epochs, the best weights, checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from exporter.progress import Progress
from exporter.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exporter.training.course import Course, Lesson
from exporter.training.distribution import clipped, from_first, is_chief, shared_out
from exporter.training.objective import Objective
from exporter.training.phase import Phase

Ending = Literal["finished", "no better", "interrupted", "diverged"]

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written after each epoch, and within an epoch that takes longer than this."""

WARM_UP = 0.05
"""Part of all steps in which the learning rate rises."""

FINAL_RATE = 0.01
"""Part of the learning rate that the cosine ends at."""

TOLERANCE = 0.5
"""Standard errors of the accuracy that an epoch may be below the best one, and be kept as the later
one. Two epochs are told apart by fewer than one, for they err on much the same samples."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast.

    Attributes:
        epochs: At the most.
        learning_rate: Of Adam, at its peak.
        patience: Epochs without a better validation after which training stops; 0 never stops.
        seed: Of the order of the samples.
    """

    epochs: int
    learning_rate: float
    patience: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        number: From 1; 0 is the start, before any step.
        loss: Mean over the training samples, while the weights moved; None at the start.
        validation_loss: Of the weights after it; None without validation data.
        accuracy: On the validation data, 0 to 1, the mean over the outputs that classify; None
            where none does.
        learning_rate: At its end.
        seconds: Since the training began, those of former processes included.
    """

    number: int
    loss: float | None
    validation_loss: float | None
    accuracy: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class History:
    """What became of one phase.

    Attributes:
        phase: Its name.
        epochs: In order, the start first.
        best: Number of the epoch whose weights were kept.
        ending: Why it ended.
        steps: How many there were.
        seconds: What it took, in all processes that it was spread over in time.
    """

    phase: str
    epochs: tuple[Epoch, ...]
    best: int
    ending: Ending
    steps: int
    seconds: float


class Loop:
    """Trains one phase: ``run`` does it, and leaves the best weights in the phase."""

    def __init__(
        self,
        phase: Phase,
        objective: Objective,
        course: Course,
        settings: Settings,
        *,
        strategy: Any,
        progress: Progress,
        checkpoint: Path | None = None,
        label: str = "Fine-tuning",
        on_step: Callable[[Phase, int], None] | None = None,
    ) -> None:
        """Prepares, without a step.

        Args:
            phase: Made under the strategy.
            objective: What is minimized.
            course: What is learned from.
            settings: How long and how fast.
            strategy: Of ``tf.distribute``.
            progress: Is told of steps and epochs.
            checkpoint: File to write checkpoints to, and to go on from if it is there; None writes
                none.
            label: Of the progress bar.
            on_step: Is called after every step with the phase and the number of steps so far.
        """
        import tensorflow as tf

        self._phase, self._objective, self._course = phase, objective, course
        self._settings, self._strategy, self._progress = settings, strategy, progress
        self._file, self._label, self._on_step = checkpoint, label, on_step
        with strategy.scope():
            self._optimizer = _optimizer(settings, course.steps_per_epoch)
            self._optimizer.build(phase.trained)
        self._runner = phase.student.runner()
        self._prepare = tf.function(phase.prepare, autograph=False)
        self._step = self._compiled()
        self._at = _Position()
        self._best: Sequence[NDArray[Any]] = []

    def run(self) -> History:
        """Trains until the epochs are over, validation gets no better, or Ctrl-C is pressed."""
        self._started = time.perf_counter()
        self._resume()
        total = self._settings.epochs * (self._course.steps_per_epoch or 1)
        try:
            with self._progress.track(self._label, total) as advance:
                if not self._at.epochs:
                    self._close_epoch(0, None)
                while self._at.ending is None:
                    self._run_epoch(advance)
        except KeyboardInterrupt:
            # Other workers would wait for this one for ever.
            if self._strategy.num_replicas_in_sync > 1 or not self._best:
                raise
            self._at.ending = "interrupted"
            self._progress.note(
                f"Interrupted in epoch {self._at.epoch}: goes on with the best so far, that of "
                f"epoch {self._at.best}; Ctrl-C once more stops all"
            )
        self._restore_best()
        return History(
            phase=self._phase.name,
            epochs=tuple(self._at.epochs),
            best=self._at.best,
            ending=self._at.ending or "finished",
            steps=self._at.total_steps,
            seconds=self._seconds(),
        )

    def _run_epoch(self, advance: Callable[[int, str], None]) -> None:
        at = self._at
        saved = time.perf_counter()
        batches = self._course.batches(seed=self._settings.seed, epoch=at.epoch, start=at.step)
        for batch in batches:
            loss = self._take_step(batch)
            at.loss += loss * batch.samples
            at.samples += batch.samples
            at.step += 1
            at.total_steps += 1
            advance(at.total_steps, self._status())
            if self._on_step is not None:
                self._on_step(self._phase, at.total_steps)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        self._close_epoch(at.epoch, at.loss / max(1, at.samples))
        at.epoch, at.step, at.loss, at.samples = at.epoch + 1, 0, 0.0, 0
        self._save()

    def _take_step(self, batch: Lesson) -> float:
        import tensorflow as tf

        share = tf.constant(1 / batch.samples, tf.float32)
        arrays = (batch.inputs, batch.labels, batch.teacher)
        return float(self._step(*shared_out(self._strategy, arrays, batch.samples), share))

    def _compiled(self) -> Callable[..., Any]:
        """Returns a step, traced once for each size of batch: an epoch has two at the most.

        Where the size is not known, gradients compute what they only take the shape of, such as
        the full product of the inputs and the full weights.
        """
        import tensorflow as tf

        phase, objective, optimizer = self._phase, self._objective, self._optimizer
        strategy = self._strategy

        def replica_step(inputs: Any, labels: Any, teacher: Any, share: Any) -> Any:
            loss, gradients = phase.gradients(objective, inputs, labels, teacher, share)
            if phase.clip is not None:
                gradients = clipped(gradients, phase.clip)
            optimizer.apply(gradients, phase.trained)
            return loss

        def step(inputs: Any, labels: Any, teacher: Any, share: Any) -> Any:
            phase.prepare()
            losses = strategy.run(replica_step, args=(inputs, labels, teacher, share))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        function: Callable[..., Any] = tf.function(step, autograph=False)
        return function

    def _close_epoch(self, number: int, loss: float | None) -> None:
        """Evaluates, keeps the best weights, and decides whether to go on."""
        at, settings = self._at, self._settings
        self._prepare()
        score = self._course.evaluate(self._runner, self._objective)
        epoch = Epoch(
            number=number,
            loss=loss,
            validation_loss=score.loss,
            accuracy=score.accuracy,
            learning_rate=float(self._optimizer.learning_rate),
            seconds=self._seconds(),
        )
        at.epochs.append(epoch)
        diverged = any(
            x is not None and not math.isfinite(x) for x in (epoch.loss, epoch.validation_loss)
        )
        peak = _best_of(at.epochs)
        if not diverged and _is_kept(epoch, at.epochs[0], peak, score.samples):
            at.best = number
            self._best = [variable.numpy() for variable in self._phase.state]
        if number:
            self._progress.note(_line(epoch, settings.epochs))
        if diverged:
            at.ending = "diverged"
            self._progress.note(
                f"Diverged in epoch {number}: goes on with the best so far, that of epoch "
                f"{at.best}. Lower the learning rate, now {settings.learning_rate:g}"
            )
        elif number >= settings.epochs:
            at.ending = "finished"
        elif settings.patience and number - peak.number >= settings.patience:
            at.ending = "no better"
        # All workers must agree, even where their processors round differently.
        (goes_on,) = from_first(self._strategy, [float(at.ending is None)])
        if not goes_on and at.ending is None:
            at.ending = "finished"

    def _status(self) -> str:
        at = self._at
        text = f"epoch {at.epoch}/{self._settings.epochs}, loss {at.loss / at.samples:.4f}"
        last = at.epochs[-1]
        if last.accuracy is not None:
            text += f", validation accuracy {last.accuracy:.2%}"
        return text

    def _seconds(self) -> float:
        return self._at.seconds + time.perf_counter() - self._started

    def _restore_best(self) -> None:
        _assign(self._phase.state, from_first(self._strategy, self._best))

    def _save(self) -> None:
        if self._file is None or not is_chief(self._strategy):
            return
        at = dataclasses.replace(self._at, seconds=self._seconds())
        checkpoint = Checkpoint(
            state=[variable.numpy() for variable in self._phase.state],
            optimizer=[variable.numpy() for variable in self._optimizer.variables],
            best=self._best,
            progress=dataclasses.asdict(at),
        )
        save_checkpoint(checkpoint, self._file)

    def _resume(self) -> None:
        """Goes on from the first worker's checkpoint, or from its weights if there is none."""
        chief = is_chief(self._strategy)
        found = load_checkpoint(self._file) if self._file is not None and chief else None
        variables = [*self._phase.state, *self._optimizer.variables]
        if found is not None:
            values = dict(found.progress)
            epochs = [Epoch(**epoch) for epoch in values.pop("epochs")]
            self._at = _Position(**values, epochs=epochs)
            self._best = found.best
            _assign(variables, [*found.state, *found.optimizer])
            self._progress.note(
                f"Goes on from the checkpoint in epoch {self._at.epoch}, step {self._at.step}"
            )
        at = self._at
        place = [len(at.epochs), at.epoch, at.step, at.total_steps, at.best]
        closed, at.epoch, at.step, at.total_steps, at.best = (
            int(value) for value in from_first(self._strategy, place)
        )
        if not chief:
            # Only the first worker knows of former epochs, and only it decides.
            unknown = Epoch(0, None, None, None, 0.0, 0.0)
            at.epochs = [unknown] * closed
            self._best = [variable.numpy() for variable in self._phase.state]
        if self._strategy.num_replicas_in_sync > 1:
            own = [variable.numpy() for variable in variables]
            _assign(variables, from_first(self._strategy, own))


@dataclass
class _Position:
    """Where a training stands; becomes part of a checkpoint."""

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    samples: int = 0
    best: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    ending: Ending | None = None


def _optimizer(settings: Settings, steps_per_epoch: int | None) -> Any:
    """Adam, with warm-up and cosine decay where the number of steps is known."""
    import keras

    rate: Any = settings.learning_rate
    if steps_per_epoch is not None:
        total = steps_per_epoch * settings.epochs
        warm_up = int(WARM_UP * total)
        rate = keras.optimizers.schedules.CosineDecay(
            settings.learning_rate / max(1, warm_up),
            max(1, total - warm_up),
            alpha=FINAL_RATE,
            warmup_target=settings.learning_rate,
            warmup_steps=warm_up,
        )
    return keras.optimizers.Adam(rate)


def _assign(variables: Sequence[Any], values: Sequence[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _best_of(epochs: Sequence[Epoch]) -> Epoch:
    """Returns the epoch of the highest accuracy, of several that of the least loss, then the first.

    Without validation that is the last one.
    """
    known = [e for e in epochs if e.validation_loss is not None]
    if not known:
        return epochs[-1]
    return max(known, key=lambda e: (e.accuracy or 0.0, -(e.validation_loss or 0.0)))


def _is_kept(epoch: Epoch, start: Epoch, peak: Epoch, samples: int) -> bool:
    """Tells whether the weights of an epoch are kept in the place of former ones.

    Training must have gained something since the start. Of epochs that the validation data can't
    tell apart by accuracy, the last one is kept, whose steps were the smallest: the highest of many
    noisy accuracies is often that of an early epoch. Values are told apart by the loss.

    Args:
        epoch: The one that ended.
        start: Before any step.
        peak: The best one so far, which may be ``epoch``.
        samples: Of the validation data; 0 if there are none.
    """
    if epoch is peak:
        return True
    if epoch.accuracy is None or peak.accuracy is None or _best_of([start, epoch]) is start:
        return False
    tolerance = TOLERANCE * math.sqrt(peak.accuracy * (1 - peak.accuracy) / samples)
    return epoch.accuracy >= peak.accuracy - tolerance


def _line(epoch: Epoch, epochs: int) -> str:
    parts = [f"Epoch {epoch.number} of {epochs}"]
    if epoch.loss is not None:
        parts.append(f"loss {epoch.loss:.4f}")
    if epoch.validation_loss is not None:
        parts.append(f"validation loss {epoch.validation_loss:.4f}")
    if epoch.accuracy is not None:
        parts.append(f"validation accuracy {epoch.accuracy:.2%}")
    return f"{parts[0]}: {', '.join([*parts[1:], f'{epoch.seconds:.0f} s'])}"
