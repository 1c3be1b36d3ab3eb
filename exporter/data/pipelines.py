"""Reads ``tf.data`` pipelines: the first samples into memory, all others in batches."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from exporter.data.checks import check_values, find_bad, refuse_bad
from exporter.data.lazy import HELD_BYTES, in_memory
from exporter.data.split import LABELS, ONLY_INPUT, Split
from exporter.errors import DataError, brief

PARTS = ("train", "validation", "test")

PIPELINE = "pipeline"
"""Name of the data sets of pipelines."""

_READ_AT_ONCE = 64
_COMPARED = 64  # first samples, which show whether a pipeline begins alike each time


def is_pipeline(value: object) -> bool:
    """Tells whether a value is a ``tf.data.Dataset``, without importing TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(value, tensorflow.data.Dataset)


@dataclass(frozen=True)
class PipelineSource:
    """Batches of a ``tf.data`` pipeline, which shuffles by itself: ``seed`` has no effect.

    Attributes:
        skipped: Number of first samples that are held out for validation and test.
        samples: Samples in an epoch; None where the pipeline does not know.
    """

    part: str
    pipeline: Any
    skipped: int = 0
    samples: int | None = None
    step: Callable[[Split], Split] = lambda split: split

    def map(self, step: Callable[[Split], Split]) -> "PipelineSource":
        """Applies one more function to every batch."""
        former = self.step
        return replace(self, step=lambda split: step(former(split)))

    def batches(self, size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Split]:
        """Yields the batches of an epoch; see ``BatchSource``."""
        del seed, epoch
        rest = self.pipeline.skip(self.skipped + start * size)
        for batch in _read(self.part, rest, size):
            _check(self.part, batch)
            yield self.step(batch)


class Head(NamedTuple):
    """The first samples of a pipeline, in memory, and whether it ended with them."""

    split: Split
    ended: bool


def read_head(part: str, pipeline: Any, samples: int) -> Head:
    """Reads at most the first ``samples``, fewer if they take more than ``HELD_BYTES``.

    Raises:
        DataError: If it yields something else, repeats for ever, fails, or holds nothing.
    """
    _check_elements(part, pipeline)
    batches: list[Split] = []
    count = size = 0
    ended = True
    for batch in _read(part, pipeline.take(samples + 1), _READ_AT_ONCE):
        room = samples - count if size <= HELD_BYTES else 0
        batches.append(batch.take(slice(room)))
        ended = len(batch) <= room
        if not ended:
            break
        count += len(batch)
        size += sum(array.nbytes for array in (*batch.inputs.values(), *batch.labels.values()))
    if not batches:
        raise DataError(f"The pipeline {part!r} must hold samples. Received: none.")
    inputs, labels = (
        {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
        for arrays in ([batch.inputs for batch in batches], [batch.labels for batch in batches])
    )
    _check(part, Split(inputs, labels))
    return Head(Split(inputs, labels), ended)


def source_after(part: str, pipeline: Any, head: Head, skipped: int) -> PipelineSource:
    """Returns the batches of a training pipeline after its first samples, which are held out.

    Raises:
        DataError: If it does not begin with the same samples each time.
    """
    if skipped:
        again = read_head(part, pipeline, min(skipped, _COMPARED)).split
        first = head.split.take(slice(len(again)))
        pairs = ((again.inputs, first.inputs), (again.labels, first.labels))
        if not all(np.array_equal(one[name], two[name]) for one, two in pairs for name in one):
            raise DataError(
                f"The first samples of the pipeline {part!r} are held out, and it begins with "
                "others each time, so that they would be trained on. Give it together with a "
                "validation and a test part, or shuffle it with reshuffle_each_iteration=False."
            )
    known = len(head.split) if head.ended else int(pipeline.cardinality())
    return PipelineSource(part, pipeline, skipped, known - skipped if known >= 0 else None)


def _check_elements(part: str, pipeline: Any) -> None:
    import tensorflow as tf

    spec = pipeline.element_spec
    structure = spec if isinstance(spec, tuple) else (spec,)
    leaves = [leaf for level in structure for leaf in _named(level, "").values()]
    if len(structure) > 2 or not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise DataError(
            f"The pipeline {part!r} must yield x or (x, y), each a dense tensor or a dictionary of "
            f"them by the names of inputs and outputs. Received: {spec}."
        )
    if all(leaf.shape.rank and leaf.shape[0] is None for leaf in leaves):
        raise DataError(
            f"The pipeline {part!r} must yield single samples, of a known shape. Received: {spec}. "
            "Call .unbatch() on it if these are batches."
        )
    if pipeline.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            f"The pipeline {part!r} must end. Received: one that repeats for ever. Leave out "
            ".repeat(): epochs are counted for you."
        )


def _read(part: str, pipeline: Any, size: int) -> Iterator[Split]:
    import tensorflow as tf

    batches = pipeline.batch(size).prefetch(1).as_numpy_iterator()
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError as error:
            raise DataError(f"The pipeline {part!r} failed: {brief(error)}") from error
        if batch is None:
            return
        inputs, labels = (*batch, {})[:2] if isinstance(batch, tuple) else (batch, {})
        yield Split(_named(inputs, ONLY_INPUT), _named(labels, LABELS))


def _named(arrays: Any, only: str) -> dict[str, Any]:
    return dict(arrays) if isinstance(arrays, Mapping) else {only: arrays}


def _check(part: str, split: Split) -> None:
    for arrays in (split.inputs, split.labels):
        for name, array in in_memory(arrays).items():
            where = f"Array {name!r} of the pipeline {part!r}"
            check_values(where, array)
            refuse_bad(where, find_bad(array))
