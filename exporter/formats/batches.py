"""Artifacts that take batches of one size, fed with any number of samples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from exporter.formats.base import Runner
from exporter.graph.runner import predict_in_batches
from exporter.graph.signature import TensorInfo, Tensors, split


def batch_of(inputs: Iterable[TensorInfo]) -> int | None:
    """Returns the batch size that inputs insist on; None if any will do."""
    return next((info.fixed_batch for info in inputs if info.fixed_batch), None)


def whole_batches(inputs: Tensors, size: int | None) -> Iterator[Tensors]:
    """Cuts samples into batches of one size, the last one filled up by repeating samples.

    A size of None leaves them together.
    """
    count = len(next(iter(inputs.values())))
    return split(_filled(inputs, size or count), size or count)


def _filled(inputs: Tensors, size: int) -> Tensors:
    import numpy as np

    missing = -len(next(iter(inputs.values()))) % size
    return {n: np.resize(a, (len(a) + missing, *a.shape[1:])) for n, a in inputs.items()}


class BatchByBatch:
    """Feeds a runner that only takes batches of one size."""

    def __init__(self, runner: Runner, size: int) -> None:
        self._runner, self._size = runner, size

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts any number of samples."""
        count, filled = len(next(iter(inputs.values()))), _filled(inputs, self._size)
        total = len(next(iter(filled.values())))
        outputs = predict_in_batches(self._runner, filled, self._size, total)
        return {name: array[:count] for name, array in outputs.items()}

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds any number of samples; see the protocol."""
        calls = [self._runner.prepare(batch) for batch in whole_batches(inputs, self._size)]
        return lambda: [call() for call in calls]


def batched(runner: Runner, inputs: Iterable[TensorInfo]) -> Runner:
    """Returns a runner that takes any number of samples, whatever its inputs insist on."""
    size = batch_of(inputs)
    return BatchByBatch(runner, size) if size else runner
