"""The inputs that artifacts are compared on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from exporter.data import Array, Dataset, Samples, in_memory
from exporter.graph.runner import predict_in_batches
from exporter.graph.signature import FREE_SIZE, TensorInfo

BATCH_SIZE = 64
LEAST_BATCH = 8
BATCH_MACS = 16_000_000_000
"""What a batch may cost before it is made smaller: time, and memory for activations."""

SINGLE_SAMPLES = 16
RANDOM_SAMPLES = 128

TEST_SAMPLES = 10_000
_TEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Probe:
    """A set of inputs.

    Attributes:
        name: ``test`` (real data), ``random`` (uniform in the range of the data), ``single`` (the
            first of the former, at batch 1) or ``edge`` (zeros and the extremes of the range).
        inputs: Arrays by input name, samples along the first axis.
        batch_size: How many samples are predicted at once.
        must_vary: Whether an output that is the same for all samples is a fault in any case.
        labels: Labels by output name; empty if there are none.
    """

    name: str
    inputs: dict[str, Array]
    batch_size: int
    must_vary: bool = False
    labels: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def make_probes(
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    dataset: Dataset,
    seed: int,
    *,
    largest: float = 1,
    macs: int = 1,
) -> list[Probe]:
    """Makes the probes for a model; the first is the one that counts most.

    Args:
        inputs: The inputs of the model.
        outputs: Its outputs; large ones limit how many samples are kept in memory.
        dataset: Fitted to the model; without a test part, the first probe is the random one.
        seed: Of the random inputs.
        largest: Without a test part, floating point inputs are within 0 and this.
        macs: Multiply-accumulates for one sample; large ones make batches smaller.
    """
    # A model with a fixed batch takes no other.
    fixed = next((info.fixed_batch for info in inputs if info.fixed_batch), None)
    batch = fixed or max(LEAST_BATCH, min(BATCH_SIZE, BATCH_MACS // max(1, macs)))
    test = dataset.test
    probes: list[Probe] = []
    if test is None:
        ranges: dict[str, tuple[float, float]] = {
            info.name: (0, largest if _is_float(info.dtype) else 1) for info in inputs
        }
        shapes = {info.name: tuple(size or FREE_SIZE for size in info.shape[1:]) for info in inputs}
    else:
        taken = test.take(slice(_affordable_samples(test.inputs, outputs)))
        real = in_memory(taken.inputs)
        ranges = {name: (array.min(), array.max()) for name, array in real.items()}
        shapes = {name: array.shape[1:] for name, array in real.items()}
        probes.append(Probe("test", real, batch, labels=in_memory(taken.labels)))
    rng = np.random.default_rng(seed)
    randoms, edges = {}, {}
    for info in inputs:
        low, high = ranges[info.name]
        shape = shapes[info.name]
        randoms[info.name] = _random(rng, (RANDOM_SAMPLES, *shape), low, high, info.dtype)
        # Integers are indices or classes, and zero need not be one of them.
        zero = 0 if _is_float(info.dtype) else np.clip(0, low, high)
        corners = np.array([zero, low, high], dtype=info.dtype)
        edges[info.name] = np.stack([np.full(shape, corner, info.dtype) for corner in corners])
    probes.append(Probe("random", randoms, batch))
    first = replace(probes[0], must_vary=True)
    single = {name: array[:SINGLE_SAMPLES] for name, array in first.inputs.items()}
    probes = [first, *probes[1:], Probe("single", single, 1), Probe("edge", edges, len(corners))]
    return [_whole_batches(probe, fixed) for probe in probes] if fixed else probes


def _affordable_samples(inputs: Mapping[str, Samples], outputs: Sequence[TensorInfo]) -> int:
    input_bytes = sum(array[:1].nbytes for array in inputs.values())
    output_bytes = sum(4 * math.prod(size or 1 for size in info.shape[1:]) for info in outputs)
    return min(TEST_SAMPLES, max(BATCH_SIZE, _TEST_BYTES // max(1, input_bytes, output_bytes)))


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _random(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float, dtype: str
) -> Array:
    if _is_float(dtype):
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)


def _whole_batches(probe: Probe, batch: int) -> Probe:
    """Drops the last samples that fill no batch; repeats samples where there are too few."""
    count = max(batch, len(probe) // batch * batch)

    def fill(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.resize(a, (count, *a.shape[1:])) for name, a in arrays.items()}

    return replace(probe, inputs=fill(probe.inputs), labels=fill(probe.labels), batch_size=batch)


Limits = Mapping[str, int | None]
"""The most samples of a probe that a backend predicts, by backend; None for all."""


def samples_within(probe: Probe, limit: int | None) -> int:
    """Returns how many samples of a probe are predicted under a limit: whole batches, at least one.

    Args:
        probe: The inputs.
        limit: The most samples that may be predicted; None for all.
    """
    if limit is None:
        return len(probe)
    return min(len(probe), max(1, limit // probe.batch_size) * probe.batch_size)


def predict(
    runner: Callable[[Mapping[str, Array]], dict[str, Array]],
    probe: Probe,
    limit: int | None = None,
) -> dict[str, Array]:
    """Predicts a probe batch by batch.

    Args:
        runner: Named arrays in, named arrays out.
        probe: The inputs.
        limit: Predicts no more samples than ``samples_within`` this limit.
    """
    count = samples_within(probe, limit)
    return predict_in_batches(runner, probe.inputs, probe.batch_size, count)
