"""Yields batches to train on, epoch by epoch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from exporter.data.split import Split

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
