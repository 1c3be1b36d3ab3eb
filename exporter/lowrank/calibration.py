"""Takes calibration data from the training part of a data set."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.data import Dataset, Samples, Task, loaded_if_small
from exporter.graph.layers import output_tensors
from exporter.graph.network import Network
from exporter.lowrank.kernels import Kernel

MAX_BATCH = 512

HELD_OUT_EVERY = 4
"""One batch of this many is held out to judge by."""

LEAST_SAMPLES = 2000
ROWS_PER_INPUT = 40
MOST_MACS = 100_000_000_000
"""Samples calibrate until each kernel has so many rows of outputs for each of its inputs, or a pass
over the model takes so many MACs, but no fewer than ``LEAST_SAMPLES``. A convolution has a row for
each position: with more samples, ResNets lose as much in the cut, which takes three times as long.
"""

_BATCH_BYTES = 2**29


@dataclass(frozen=True)
class Calibration:
    """Calibration data: inputs without labels.

    Attributes:
        inputs: Arrays by input name, samples along the first axis; lazy if they are too large.
        batch_size: Number of samples that are predicted at once.
        tasks: What the labels of the data set mean, by output.
    """

    inputs: Mapping[str, Samples]
    batch_size: int
    tasks: Mapping[str, Task] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def logits(self) -> frozenset[str]:
        """Outputs that classify: unless they are probabilities, they are taken for logits."""
        return frozenset(name for name, task in self.tasks.items() if task.classes)

    @property
    def batch_count(self) -> int:
        """The number of batches."""
        return -(-len(self) // self.batch_size)

    def head(self, samples: int) -> "Calibration":
        """Returns the first samples, in whole batches, at least one."""
        count = max(self.batch_size, samples // self.batch_size * self.batch_size)
        return replace(self, inputs={name: a[:count] for name, a in self.inputs.items()})

    def batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the samples in whole batches; the last one may be smaller."""
        yield from map(self.batch, range(self.batch_count))

    def batch(self, number: int) -> dict[str, NDArray[Any]]:
        """Returns the samples of one batch."""
        samples = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return {name: array[samples] for name, array in self.inputs.items()}


def calibration_from(network: Network, dataset: Dataset, samples: int) -> Calibration | None:
    """Takes calibration data from the training part of a data set.

    Args:
        network: The model.
        dataset: The data set, fitted to the model.
        samples: The most samples that are taken, from the front, because splits are shuffled.

    Returns:
        None if the data set has no training part, or fewer samples than a fixed batch size.
    """
    train = dataset.train
    if train is None:
        return None
    fixed = network.fixed_batch
    count = min(samples, len(train))
    # Batches are small enough that one can be held out.
    batch = fixed or min(_affordable_batch(network), -(-count // HELD_OUT_EVERY))
    if fixed:
        count = count // batch * batch
    if not count:
        return None
    return Calibration(loaded_if_small(train.take(slice(count)).inputs), batch, dataset.tasks)


def thinned(calibration: Calibration, network: Network, kernels: Iterable[Kernel]) -> Calibration:
    """Returns as many samples as the kernels of a model need, in batches that can be held out."""
    rows = max((ROWS_PER_INPUT * k.m / k.positions for k in kernels if k.data_aware), default=0)
    samples = max(LEAST_SAMPLES, min(math.ceil(rows), MOST_MACS // max(1, network.macs)))
    if len(calibration) <= samples:
        return calibration
    batch = calibration.batch_size
    if not network.fixed_batch:
        batch = min(batch, -(-samples // HELD_OUT_EVERY))
    return replace(calibration, batch_size=batch).head(max(samples, HELD_OUT_EVERY * batch))


def in_large_batches(calibration: Calibration, network: Network) -> Calibration:
    """Returns the same samples in batches as large as memory allows, none of them held out."""
    if network.fixed_batch:
        return calibration
    most = max(calibration.batch_size, _affordable_batch(network))
    return replace(calibration, batch_size=min(most, len(calibration)))


def _affordable_batch(network: Network) -> int:
    """Returns a batch size whose activations fit into memory, forward and backward."""
    return max(1, min(MAX_BATCH, _BATCH_BYTES // (4 * max(1, activation_elements(network)))))


def activation_elements(network: Network) -> int:
    """Returns the number of elements that all layers give for one sample."""
    return sum(
        int(np.prod([size or 1 for size in tensor.shape[1:]]))
        for layer in network.layers.values()
        for tensor in output_tensors(layer)
    )
