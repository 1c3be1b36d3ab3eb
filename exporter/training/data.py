"""Prepares training batches with the baseline's outputs, and evaluates on validation data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.data import ArraySource, BatchSource, Dataset, Samples, Split, in_memory
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.runner import KerasRunner, predict_whole_batches
from exporter.training.augmentation import augmented
from exporter.training.objective import Objective

PREDICTION_BATCH = 500

MAX_KEPT_BYTES = 2**30
"""The baseline's outputs for all training samples are kept if they take no more than this."""

_TEACHER = "teacher/"


class Batch(NamedTuple):
    """Arrays or tensors of some samples, by input or output name, samples along the first axis.

    ``teacher`` has the baseline's outputs, if they are needed; ``labels`` may be empty as well.
    """

    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    teacher: Mapping[str, Any]

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Score:
    """The mean loss of the validation samples, and the mean accuracy, 0 to 1, of the classifiers.

    The loss is None without validation data, the accuracy where no output classifies.
    """

    loss: float | None
    accuracy: float | None
    samples: int


def training_part(dataset: Dataset) -> tuple[BatchSource, Split]:
    """Returns the training part of a data set, as batches and as samples.

    Raises:
        DataError: If there is none.
    """
    if dataset.source is None or dataset.train is None:
        raise DataError(
            f"Fine-tuning needs a training part. Received: data {dataset.name!r} without one. "
            "Give x_train and y_train, or x and y."
        )
    return dataset.source, dataset.train


class TrainingData:
    """The training batches and the validation part of one data set.

    Attributes:
        fixed_batch: The batch size that the model demands; None if it takes any.
        seed: Of the order of the samples, and of what layers draw.
        steps_per_epoch: None where a pipeline does not know its length.
    """

    def __init__(
        self,
        dataset: Dataset,
        baseline: Network,
        objective: Objective,
        batch_size: int,
        *,
        seed: int,
        augment: str = "none",
    ) -> None:
        """Computes the baseline's outputs once, where they are needed and fit into memory.

        They are computed for each batch if images are changed; see ``augmented``.

        Raises:
            DataError: If there is nothing to train on.
        """
        source, train = training_part(dataset)
        self.objective, self.fixed_batch, self.seed = objective, baseline.fixed_batch, seed
        self.batch_size, self._augment = self.fixed_batch or batch_size, augment
        self._dtypes = {info.name: info.dtype for info in baseline.inputs}
        needed = objective.needs_teacher(frozenset(train.labels))
        self._teacher = baseline.runner() if needed else None
        self._source = self._with_teacher(source)
        self.steps_per_epoch: int | None = None
        if source.samples is not None:
            whole, rest = divmod(source.samples, self.batch_size)
            self.steps_per_epoch = whole + bool(rest and not self.fixed_batch)
            if not self.steps_per_epoch:
                raise DataError(
                    f"The model takes batches of {self.fixed_batch} samples. Received: "
                    f"{source.samples} training samples."
                )
        part = dataset.validation
        enough = part is not None and len(part) >= (self.fixed_batch or 1)
        self._validation = self._batch(part) if part is not None and enough else None

    def batches(self, *, epoch: int, start: int, taught: bool = True) -> Iterator[Batch]:
        """Yields the batches of an epoch, from number ``start`` on.

        Those that are not ``taught`` need no outputs of the baseline for outputs with labels.
        """
        size, seed = self.batch_size, self.seed
        batches = self._source.batches(size, seed=seed, epoch=epoch, start=start)
        for number, batch in enumerate(batches, start):
            if self.fixed_batch and len(batch) != self.fixed_batch:
                continue
            inputs = in_memory(batch.inputs)
            if self._augment != "none":
                rng = np.random.default_rng([seed, epoch, number])
                inputs = augmented(inputs, self._augment, rng)
            yield self._batch(Split(inputs, batch.labels), taught=taught)

    def evaluate(self, runner: KerasRunner) -> Score:
        """Measures a model on the validation data, by its labels unless they are not to teach."""
        if self._validation is None:
            return Score(None, None, 0)
        return self._score(self._predict(runner, self._validation.inputs), self._validation)

    @cached_property
    def baseline(self) -> Score:
        """What ``evaluate`` gives for the baseline, whose outputs must be needed."""
        if self._validation is None:
            return Score(None, None, 0)
        return self._score(self._validation.teacher, self._validation)

    def _score(self, outputs: Mapping[str, Any], held: Batch) -> Score:
        import tensorflow as tf

        count = len(next(iter(outputs.values())))
        predicted, labels, teacher = (
            {name: tf.convert_to_tensor(array[:count]) for name, array in arrays.items()}
            for arrays in (outputs, held.labels, held.teacher)
        )
        objective = self.objective
        if objective.distill < 1:
            objective = replace(objective, distill=0.0)
        losses = objective(predicted, labels, teacher)
        return Score(float(np.mean(losses)), self._accuracy(outputs, held.labels), count)

    def _accuracy(self, outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> float | None:
        """Returns the mean accuracy of the outputs that classify and have labels."""
        hits = [
            task.metric(outputs[name], labels[name][: len(outputs[name])]).value
            for name, task in self.objective.tasks.items()
            if task.classes and name in labels
        ]
        return float(np.mean(hits)) if hits else None

    def _with_teacher(self, source: BatchSource) -> BatchSource:
        """Adds the baseline's outputs to arrays, if they take at most ``MAX_KEPT_BYTES``."""
        changing = self.fixed_batch or self._augment != "none"
        if self._teacher is None or changing or not isinstance(source, ArraySource):
            return source
        split = source.split
        sample = self._predict(self._teacher, split.take(slice(1)).inputs)
        if sum(array.nbytes for array in sample.values()) * len(split) > MAX_KEPT_BYTES:
            return source
        outputs = self._predict(self._teacher, split.inputs)
        kept = {f"{_TEACHER}{name}": array for name, array in outputs.items()}
        return ArraySource(Split(split.inputs, {**split.labels, **kept}))

    def _batch(self, split: Split, *, taught: bool = True) -> Batch:
        inputs = {
            name: array.astype(self._dtypes[name], copy=False)
            for name, array in in_memory(split.inputs).items()
        }
        labels = in_memory(split.labels)
        kept = [name for name in labels if name.startswith(_TEACHER)]
        teacher = {name.removeprefix(_TEACHER): labels.pop(name) for name in kept}
        needed = taught or not self.objective.families.keys() <= labels.keys()
        if self._teacher is not None and needed and not teacher:
            teacher = self._predict(self._teacher, inputs)
        return Batch(inputs, labels, teacher)

    def _predict(
        self, runner: KerasRunner, inputs: Mapping[str, Samples]
    ) -> dict[str, NDArray[Any]]:
        return predict_whole_batches(runner, inputs, self.fixed_batch, PREDICTION_BATCH)
