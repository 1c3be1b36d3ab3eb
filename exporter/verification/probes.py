"""Makes the inputs that artifacts are compared on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from exporter.data import UINT8_MAX, Array, Dataset, Samples, Split, in_memory
from exporter.graph.network import Network
from exporter.graph.runner import predict_in_batches
from exporter.graph.signature import TensorInfo

BATCH_SIZE = 64
LEAST_BATCH = 8
BATCH_MACS = 16_000_000_000
"""The most MACs of a batch: they take time, and memory for activations."""

SINGLE_SAMPLES = 16
RANDOM_SAMPLES = 128

TEST_SAMPLES = 10_000
_TEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Probe:
    """A set of inputs.

    Attributes:
        name: ``test`` (real data), ``validation`` (real data to choose by), ``random`` (uniform in
            the range of the data), ``single`` (the first samples of the first probe, at batch 1) or
            ``edge`` (zeros and the extremes). Real integers, such as tokens, are mixed or chosen,
            never made up.
        inputs: Arrays by input name, samples along the first axis.
        batch_size: Number of samples that are predicted at once.
        labels: Labels by output name; empty if there are none.
    """

    name: str
    inputs: dict[str, Array]
    batch_size: int
    labels: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def make_probes(network: Network, dataset: Dataset, seed: int) -> list[Probe]:
    """Makes the probes for a model; the first is the one that counts most.

    It has test samples, or random ones if the data set, which is fitted to the model, has no test
    part. Large outputs make it smaller, and many MACs its batches.
    """
    fixed, inputs, batch = network.fixed_batch, network.inputs, _batch_size(network)
    probes: list[Probe] = []
    real: Mapping[str, Array] = {}
    if dataset.test is None:
        largest = UINT8_MAX if network.scales_input else 1
        ranges = {info.name: (0, largest if _is_float(info.dtype) else 1) for info in inputs}
        shapes = {info.name: network.signature.sample_shape(info)[1:] for info in inputs}
    else:
        probes.append(_probe_of("test", dataset.test, network))
        real = probes[0].inputs
        ranges = {name: (array.min(), array.max()) for name, array in real.items()}
        shapes = {name: array.shape[1:] for name, array in real.items()}
    rng = np.random.default_rng(seed)
    randoms, edges = {}, {}
    for info in inputs:
        (low, high), shape = ranges[info.name], shapes[info.name]
        size = (RANDOM_SAMPLES, *shape)
        if not _is_float(info.dtype) and info.name in real:
            # Integers are indices or classes: not each may be anywhere, such as padding.
            randoms[info.name] = _mixed(real[info.name], rng).astype(info.dtype)
            edges[info.name] = _extreme(real[info.name]).astype(info.dtype)
            continue
        if _is_float(info.dtype):
            randoms[info.name] = rng.uniform(low, high, size).astype(info.dtype)
        else:
            integers = rng.integers(int(low), int(high), size, endpoint=True)
            randoms[info.name] = integers.astype(info.dtype)
        edges[info.name] = np.stack([np.full(shape, end, info.dtype) for end in (0, low, high)])
    probes.append(Probe("random", randoms, batch))
    single = {name: array[:SINGLE_SAMPLES] for name, array in probes[0].inputs.items()}
    probes += [Probe("single", single, 1), Probe("edge", edges, 3)]
    return [_whole_batches(probe, fixed) for probe in probes] if fixed else probes


def validation_probe(network: Network, dataset: Dataset) -> Probe | None:
    """Makes a probe of the validation samples of a data set that is fitted to a model, if any."""
    if dataset.validation is None:
        return None
    probe = _probe_of("validation", dataset.validation, network)
    return _whole_batches(probe, network.fixed_batch) if network.fixed_batch else probe


def _probe_of(name: str, part: Split, network: Network) -> Probe:
    """Makes a probe of the samples of a part that are affordable."""
    taken = part.take(slice(_affordable_samples(part.inputs, network.outputs)))
    labels = in_memory(taken.labels)
    return Probe(name, in_memory(taken.inputs), _batch_size(network), labels)


def _batch_size(network: Network) -> int:
    # A model with a fixed batch takes no other.
    affordable = max(LEAST_BATCH, min(BATCH_SIZE, BATCH_MACS // max(1, network.macs)))
    return network.fixed_batch or affordable


def _mixed(samples: Array, rng: np.random.Generator) -> Array:
    """Draws the value at each position from the values that samples have there."""
    flat = samples.reshape(len(samples), -1)
    rows = rng.integers(0, len(flat), (RANDOM_SAMPLES, flat.shape[1]))
    return flat[rows, np.arange(flat.shape[1])].reshape(RANDOM_SAMPLES, *samples.shape[1:])


def _extreme(samples: Array) -> Array:
    """Returns the samples with the least, the middle and the largest sum of values."""
    order = np.argsort(samples.reshape(len(samples), -1).sum(axis=1), kind="stable")
    return samples[order[[0, len(order) // 2, -1]]]


def _affordable_samples(inputs: Mapping[str, Samples], outputs: Sequence[TensorInfo]) -> int:
    input_bytes = sum(array[:1].nbytes for array in inputs.values())
    output_bytes = sum(4 * math.prod(size or 1 for size in info.shape[1:]) for info in outputs)
    return min(TEST_SAMPLES, max(BATCH_SIZE, _TEST_BYTES // max(1, input_bytes, output_bytes)))


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _whole_batches(probe: Probe, batch: int) -> Probe:
    """Drops the last samples that fill no batch; repeats samples where there are too few."""
    count = max(batch, len(probe) // batch * batch)

    def fill(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.resize(a, (count, *a.shape[1:])) for name, a in arrays.items()}

    return replace(probe, inputs=fill(probe.inputs), labels=fill(probe.labels), batch_size=batch)


Limits = Mapping[str, int | None]
"""The most samples of a probe that each backend predicts; None for all."""


def samples_within(probe: Probe, limit: int | None) -> int:
    """Returns the number of samples of a probe in whole batches, at least one, under a limit."""
    if limit is None:
        return len(probe)
    return min(len(probe), max(1, limit // probe.batch_size) * probe.batch_size)


def predict(
    runner: Callable[[Mapping[str, Array]], dict[str, Array]],
    probe: Probe,
    limit: int | None = None,
) -> dict[str, Array]:
    """Predicts as many samples of a probe as ``samples_within`` the limit, batch by batch."""
    count = samples_within(probe, limit)
    return predict_in_batches(runner, probe.inputs, probe.batch_size, count)
