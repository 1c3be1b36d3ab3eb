"""Defines a data set: its parts, and all of its training data in batches, epoch by epoch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from exporter.card import Normalization
from exporter.data.pipelines import PipelineSource
from exporter.data.split import Split
from exporter.data.tasks import Task
from exporter.screen import fits_screen

READ_AHEAD = 2
"""Number of batches that are read while another one is trained on."""

T = TypeVar("T")


class BatchSource(Protocol):
    """All training data, in batches."""

    @property
    def samples(self) -> int | None:
        """Samples in an epoch; None where a pipeline does not know."""

    def batches(self, size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Split]:
        """Yields batches of ``size`` samples in memory; the last batch of an epoch may be smaller.

        ``seed`` and ``epoch`` decide the order. The first ``start`` batches are skipped, to go on
        where training stopped.
        """


@dataclass(frozen=True)
class ArraySource:
    """Batches of arrays, in an order that depends on ``seed`` and ``epoch`` alone."""

    split: Split

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return len(self.split)

    def batches(self, size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Split]:
        """Yields the batches of an epoch; a thread reads lazy arrays ahead. See ``BatchSource``."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.split))
        firsts = range(start * size, len(order), size)
        reads = (self.split.take(order[first : first + size]).read for first in firsts)
        return read_ahead(reads) if self.split.is_lazy else (read() for read in reads)


@fits_screen
@dataclass(frozen=True)
class Dataset:
    """Checked arrays in parts.

    Attributes:
        train: Part for training and calibration, the first samples of a pipeline; may be None.
        validation: Part that models are selected by; may be None.
        test: Part that is only reported on; None where data are ``"none"``.
        digest: Hash of all arrays.
        notes: Choices made for the user, one line each.
        stream: The training pipeline, if there is one.
        normalization: Scaling of the given values to the model's, by input; empty before the data
            set is fitted to a model.
        tasks: What the labels mean, by output; empty before the data set is fitted to a model.
    """

    name: str
    train: Split | None
    validation: Split | None
    test: Split | None
    digest: str
    notes: tuple[str, ...] = ()
    stream: PipelineSource | None = None
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @property
    def source(self) -> BatchSource | None:
        """All training data in batches; None if there is no training part."""
        return self.stream or (None if self.train is None else ArraySource(self.train))

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def map(self, step: Callable[[Split], Split]) -> "Dataset":
        """Applies a function to every part, and to every batch of a pipeline."""
        parts: dict[str, Any] = {name: step(part) for name, part in self.parts.items()}
        stream = None if self.stream is None else self.stream.map(step)
        return replace(self, **parts, stream=stream)


def read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Calls functions in order, in a thread that is ``READ_AHEAD`` results ahead.

    An error is raised where the result would have been yielded. The thread ends with the iterator.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        for read in reads:
            pending.append(pool.submit(read))
            if len(pending) > READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
