"""The inputs that artifacts are compared on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.data import Array, Dataset
from exporter.formats.base import TensorInfo

BATCH_SIZE = 64
SINGLE_SAMPLES = 16
RANDOM_SAMPLES = 128
FREE_SIZE = 32
"""What a free dimension other than the batch is probed at where no data tell."""

TEST_SAMPLES = 10_000
_TEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Probe:
    """A set of inputs.

    Attributes:
        name: ``test`` (real data), ``single`` (the first of them, at batch 1), ``random`` (uniform
            in the range of the data) or ``edge`` (zeros and the extremes of that range).
        inputs: Arrays by input name, samples along the first axis.
        batch_size: How many samples are predicted at once.
        varied: Whether different samples must give different outputs.
    """

    name: str
    inputs: dict[str, Array]
    batch_size: int
    varied: bool

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def make_probes(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], dataset: Dataset, seed: int
) -> list[Probe]:
    """Makes the probes for a model.

    Args:
        inputs: The inputs of the model.
        outputs: Its outputs; large ones limit how many samples are kept in memory.
        dataset: Fitted to the model; without a test part there are random and edge probes alone.
        seed: Of the random inputs.
    """
    # A model with a fixed batch takes no other.
    fixed = next((info.fixed_batch for info in inputs if info.fixed_batch), None)
    batch = fixed or BATCH_SIZE
    rng = np.random.default_rng(seed)
    test = dataset.test
    probes: list[Probe] = []
    if test is None:
        ranges = {info.name: _default_range(info) for info in inputs}
        shapes = {info.name: tuple(size or FREE_SIZE for size in info.shape[1:]) for info in inputs}
    else:
        real = test.take(slice(_affordable_samples(test.inputs, outputs)))
        ranges = {name: (array.min(), array.max()) for name, array in real.inputs.items()}
        shapes = {name: array.shape[1:] for name, array in real.inputs.items()}
        probes.append(Probe("test", dict(real.inputs), batch, varied=True))
        first = real.take(slice(SINGLE_SAMPLES))
        probes.append(Probe("single", dict(first.inputs), fixed or 1, varied=True))
    randoms, edges = {}, {}
    for info in inputs:
        low, high = ranges[info.name]
        shape = shapes[info.name]
        randoms[info.name] = _random(rng, (RANDOM_SAMPLES, *shape), low, high, info.dtype)
        corners = np.array([0, low, high], dtype=info.dtype)
        corners = np.clip(corners, low, high) if info.dtype.startswith(("int", "uint")) else corners
        edges[info.name] = np.broadcast_to(
            corners.reshape(-1, *(1 for _ in shape)), (len(corners), *shape)
        ).copy()
    probes.append(Probe("random", randoms, batch, varied=True))
    probes.append(Probe("edge", edges, fixed or len(corners), varied=False))
    return [_whole_batches(probe) for probe in probes] if fixed else probes


def _affordable_samples(inputs: Mapping[str, Array], outputs: Sequence[TensorInfo]) -> int:
    input_bytes = sum(array[:1].nbytes for array in inputs.values())
    output_bytes = sum(4 * math.prod(size or 1 for size in info.shape[1:]) for info in outputs)
    return min(TEST_SAMPLES, max(BATCH_SIZE, _TEST_BYTES // max(1, input_bytes, output_bytes)))


def _default_range(info: TensorInfo) -> tuple[float, float]:
    return (0.0, 1.0) if info.dtype.startswith(("float", "bfloat")) else (0, 1)


def _random(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float, dtype: str
) -> Array:
    if dtype.startswith(("float", "bfloat")):
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)


def _whole_batches(probe: Probe) -> Probe:
    """Repeats samples until they fill the batches of a model with a fixed batch size."""
    count = -(-len(probe) // probe.batch_size) * probe.batch_size
    inputs = {name: np.resize(a, (count, *a.shape[1:])) for name, a in probe.inputs.items()}
    return Probe(probe.name, inputs, probe.batch_size, probe.varied)


def predict(
    runner: Callable[[Mapping[str, Array]], dict[str, Array]],
    probe: Probe,
    limit: int | None = None,
) -> dict[str, Array]:
    """Predicts a probe batch by batch.

    Args:
        runner: Named arrays in, named arrays out.
        probe: The inputs.
        limit: Predicts no more than this many samples, rounded up to a batch.
    """
    count = len(probe) if limit is None else min(len(probe), limit)
    chunks = [
        runner(
            {name: array[start : start + probe.batch_size] for name, array in probe.inputs.items()}
        )
        for start in range(0, count, probe.batch_size)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
