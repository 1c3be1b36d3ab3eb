"""What is learned from: batches with the baseline's outputs, and validation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.data import ArraySource, BatchSource, Dataset, Samples, Split, in_memory
from exporter.data.metrics import is_classes, is_one_hot, task_metric
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.runner import KerasRunner, predict_in_batches
from exporter.training.objective import Objective

PREDICTION_BATCH = 500

MAX_KEPT_BYTES = 2**30
"""The baseline's outputs for all training samples are kept if they take no more than this."""

_TEACHER = "teacher/"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Lesson:
    """A batch.

    Attributes:
        inputs: By input name.
        labels: By output name; empty if there are none.
        teacher: The baseline's outputs by name; empty if they are not needed.
        samples: How many there are.
    """

    inputs: Arrays
    labels: Arrays
    teacher: Arrays
    samples: int


@dataclass(frozen=True)
class Score:
    """How good a model is on the validation data.

    Attributes:
        loss: Mean over the samples; None without validation data.
        accuracy: Mean over the outputs that classify, 0 to 1; None where none does.
        samples: How many there are.
    """

    loss: float | None
    accuracy: float | None
    samples: int


def training_part(dataset: Dataset) -> tuple[BatchSource, Split]:
    """Returns what there is to train on, as batches and as samples.

    Raises:
        DataError: If there is nothing.
    """
    if dataset.source is None or dataset.train is None:
        raise DataError(
            f"Fine-tuning needs a training part. Received: data {dataset.name!r} without one. "
            "Give x_train and y_train, or x and y."
        )
    return dataset.source, dataset.train


class Course:
    """The training batches of one data set, and its validation.

    Attributes:
        fixed_batch: The batch size that the model asks for; None if it takes any.
        steps_per_epoch: None where a pipeline does not know its length.
    """

    def __init__(
        self, dataset: Dataset, baseline: Network, objective: Objective, batch_size: int
    ) -> None:
        """Has the baseline predict once what it will be asked for many times.

        Args:
            dataset: Fitted to the model.
            baseline: The teacher.
            objective: Says whether a teacher is needed.
            batch_size: Of training.

        Raises:
            DataError: If there is nothing to train on.
        """
        source, train = training_part(dataset)
        self.fixed_batch = baseline.fixed_batch
        self._dtypes = {info.name: info.dtype for info in baseline.inputs}
        self._batch_size = self.fixed_batch or batch_size
        labelled = frozenset(train.labels)
        self._teacher = baseline.runner() if objective.needs_teacher(labelled) else None
        self._source = self._taught(source)
        samples = source.samples
        self.steps_per_epoch: int | None = None
        if samples is not None:
            whole, rest = divmod(samples, self._batch_size)
            self.steps_per_epoch = whole + bool(rest and not self.fixed_batch)
            if not self.steps_per_epoch:
                raise DataError(
                    f"The model takes batches of {self.fixed_batch} samples. Received: "
                    f"{samples} training samples."
                )
        validation = dataset.validation
        if validation is not None and len(validation) < (self.fixed_batch or 1):
            validation = None
        self._validation = None if validation is None else self._lesson(validation)

    def batches(self, *, seed: int, epoch: int, start: int) -> Iterator[Lesson]:
        """Yields an epoch's batches, from number ``start`` on.

        Args:
            seed: With the epoch, decides the order.
            epoch: Counted from 1.
            start: How many were seen already.
        """
        for batch in self._source.batches(self._batch_size, seed=seed, epoch=epoch, start=start):
            if not self.fixed_batch or len(batch) == self.fixed_batch:
                yield self._lesson(batch)

    def evaluate(self, runner: KerasRunner, objective: Objective) -> Score:
        """Measures a model on the validation data.

        Args:
            runner: Of the model.
            objective: What was minimized.
        """
        lesson = self._validation
        if lesson is None:
            return Score(None, None, 0)
        outputs = self._predict(runner, lesson.inputs)
        count = len(next(iter(outputs.values())))

        def kept(arrays: Arrays) -> dict[str, Any]:
            import tensorflow as tf

            return {name: tf.convert_to_tensor(array[:count]) for name, array in arrays.items()}

        losses = objective(kept(outputs), kept(lesson.labels), kept(lesson.teacher))
        hits = [
            task_metric(outputs[name], labels[:count]).value
            for name, labels in lesson.labels.items()
            if is_classes(labels) or is_one_hot(labels)
        ]
        return Score(float(np.mean(losses)), float(np.mean(hits)) if hits else None, count)

    def _taught(self, source: BatchSource) -> BatchSource:
        """Adds the baseline's outputs to arrays, if they are not too many."""
        if self._teacher is None or self.fixed_batch or not isinstance(source, ArraySource):
            return source
        split = source.split
        size = sum(array.nbytes for array in self._predicted(split.take(slice(1)).inputs).values())
        if size * len(split) > MAX_KEPT_BYTES:
            return source
        outputs = self._predicted(split.inputs)
        taught = {f"{_TEACHER}{name}": array for name, array in outputs.items()}
        return ArraySource(Split(split.inputs, {**split.labels, **taught}))

    def _lesson(self, split: Split) -> Lesson:
        inputs = {
            name: array.astype(self._dtypes[name], copy=False)
            for name, array in in_memory(split.inputs).items()
        }
        labels = in_memory(split.labels)
        teacher = {
            name.removeprefix(_TEACHER): labels.pop(name)
            for name in list(labels)
            if name.startswith(_TEACHER)
        }
        if self._teacher is not None and not teacher:
            teacher = self._predicted(inputs)
        return Lesson(inputs, labels, teacher, len(split))

    def _predicted(self, inputs: Mapping[str, Samples]) -> dict[str, NDArray[Any]]:
        if self._teacher is None:
            return {}
        return self._predict(self._teacher, inputs)

    def _predict(
        self, runner: KerasRunner, inputs: Mapping[str, Samples]
    ) -> dict[str, NDArray[Any]]:
        """Predicts all samples; of a model of a fixed batch size, those that fill whole batches."""
        count = len(next(iter(inputs.values())))
        if self.fixed_batch:
            count = count // self.fixed_batch * self.fixed_batch
        return predict_in_batches(runner, inputs, self.fixed_batch or PREDICTION_BATCH, count)
