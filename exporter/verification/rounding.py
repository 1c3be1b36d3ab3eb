"""The noise that quantization is expected to add, measured on the artifact itself.

Rounding moved each kernel's elements by up to half a step. If they are moved at random by as much
again, the outputs depart from those of the artifact about as far as these depart from the model's,
whatever the operators, scales and factor pairs are. This is Monte Carlo arithmetic (Parker, 1997).
A fault of the artifact, such as a bias that is lost, is in both, and in no rounding.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array, Dataset, in_memory
from exporter.data.metrics import decibels
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, Format
from exporter.formats.variants import Variant
from exporter.graph.network import Network
from exporter.isolation import call_in_child
from exporter.quantization.scheme import IntegerScheme, levels
from exporter.verification.parity import load_arrays, save_arrays
from exporter.verification.probes import Probe, predict, samples_within

DRAWS = 6
"""Number of times that an artifact is rounded anew."""

FEWEST_SAMPLES, MOST_SAMPLES = 8, 512
MOST_MACS = 20_000_000_000
"""The most samples, and the most MACs, that a draw may take."""

NEGLIGIBLE = 1e-8
"""Noise that rounding of floats may add, as a part of the power of the signal."""

CONSTANT_PART = 0.1
"""Part of the variance of rounding activations of full scale that no draw may show.

Activations that hardly vary are rounded alike for all samples, and in all draws.
"""

_MOST_STEPPED = 2**16
"""The most elements that a step is looked for in."""

_MOVED = 1 / 24
"""Part of the elements that move one step up, and down: the variance of rounding is 1/12."""


@dataclass(frozen=True)
class Excess:
    """The noise of one output beside what rounding explains, in decibels.

    Attributes:
        expected_snr_db: Signal to noise ratio by rounding alone.
        total: By how much the noise of all elements is above that.
        channel: By how much that of the worst channel is.
        limit: The most of ``total`` by chance.
        channel_limit: The most of ``channel`` by chance.
    """

    expected_snr_db: float
    total: float
    channel: float
    limit: float
    channel_limit: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the noise; NaN fails."""
        return self.total <= self.limit and self.channel <= self.channel_limit


ALLOWED_DB, ALLOWED_DEVIATIONS = 2.0, 3.0
CHANNEL_ALLOWED_DB, CHANNEL_ALLOWED_DEVIATIONS = 6.0, 5.0
"""What noise may exceed the mean of the draws by: decibels, and standard deviations of a draw."""


KEPT_DB, KEPT_CHANNEL_DB = 1.0, 3.0
"""By what noise may exceed that of the same artifact, for another processor's rounding."""


def excess_over(recorded: Array, values: Array, expected: Array) -> Excess:
    """Compares the noise of an output with what the same artifact had when it was accepted."""
    drawn = _noise_by_channel(recorded, expected)
    return _excess(values, expected, drawn[None], (KEPT_DB, KEPT_CHANNEL_DB))


def rounding_probe(network: Network, dataset: Dataset, first: Probe, calibration: int) -> Probe:
    """Returns the probe on which rounding is all that quantization does.

    Ranges of activations cover the samples they were calibrated on, which are the first ones of the
    training part; others may be clipped. Without a training part it is the first probe.
    """
    count = min(calibration, MOST_SAMPLES, len(dataset.train or ()))
    fixed = network.fixed_batch or 1
    if dataset.train is None or count < fixed:
        return first
    inputs = in_memory(dataset.train.take(slice(count // fixed * fixed)).inputs)
    return Probe("calibration", inputs, first.batch_size)


def find_excesses(
    artifact: Artifact,
    probe: Probe,
    reference: Mapping[str, Array],
    folder: Path,
    *,
    macs: int,
    most_samples: int | None = None,
    seed: int = 0,
) -> dict[str, Excess]:
    """Compares the noise of an artifact's outputs with that of rounding kernels and inputs anew.

    Args:
        artifact: A quantized artifact, which is run in the backend that ships.
        probe: What ``rounding_probe`` returned.
        reference: The model's predictions of the probe, by output.
        folder: For files.
        macs: Multiply-accumulates of one sample, which limit the samples and the time.
        most_samples: The most samples of the probe, if fewer than these MACs allow.
        seed: Of the random numbers.

    Returns:
        The excess by output; outputs of another shape than in the reference are left out.

    Raises:
        ChildError: If the runtime cannot run it.
    """
    fmt = FORMATS[artifact.format]
    affordable = max(FEWEST_SAMPLES, MOST_MACS // max(1, macs))
    count = samples_within(probe, min(most_samples or affordable, affordable, MOST_SAMPLES))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        save_arrays(Path(name, _INPUTS), _head(probe.inputs, count))
        job = {
            "format": artifact.format,
            "variant": artifact.variant,
            "path": str(artifact.path),
            "folder": name,
            "batch_size": probe.batch_size,
            "seed": seed,
        }
        call_in_child(
            f"{__name__}:_draw_here",
            job,
            fmt.imports,
            work=(1 + DRAWS) * count * macs,
            data=(1 + DRAWS) * artifact.size + sum(a.nbytes for a in probe.inputs.values()),
        )
        own, drawn = load_arrays(Path(name, _OUTPUTS)), load_arrays(Path(name, _DRAWN))
    expected, floor = _head(reference, count), _negligible(fmt.variant(artifact.variant).scheme)
    return {
        output: _excess(own[output], array, drawn[output], floor=floor)
        for output, array in expected.items()
        if output in own and own[output].shape == array.shape
    }


def _head(arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
    return {name: array[:count] for name, array in arrays.items()}


_INPUTS, _OUTPUTS, _DRAWN = "inputs.npz", "outputs.npz", "drawn.npz"


def _draw_here(job: dict[str, Any]) -> None:
    """Runs in the child of ``find_excesses``: writes outputs, and the noise of each draw."""
    fmt, folder, source = FORMATS[job["format"]], Path(job["folder"]), Path(job["path"])
    variant, shipped = fmt.variant(job["variant"]), fmt.backends[0]
    inputs, rng = load_arrays(folder / _INPUTS), np.random.default_rng(job["seed"])

    def outputs_of(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
        return predict(fmt.load(path, shipped), Probe("rounding", inputs, job["batch_size"]))

    own = outputs_of(source, inputs)
    noise: dict[str, list[Array]] = {output: [] for output in own}
    for number in range(DRAWS):
        path = folder / f"{number}-{source.name}"
        moved = round_anew(source, path, inputs, fmt=fmt, variant=variant, rng=rng)
        for output, values in outputs_of(path, moved).items():
            noise[output].append(_noise_by_channel(values, own[output]))
    save_arrays(folder / _OUTPUTS, own)
    save_arrays(folder / _DRAWN, {name: np.stack(parts) for name, parts in noise.items()})


def round_anew(
    source: Path,
    target: Path,
    inputs: dict[str, Array],
    *,
    fmt: Format,
    variant: Variant,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Writes a copy of an artifact that rounding could have made as well; returns such inputs."""
    change = _Change(rng)
    fmt.rewrite_kernels(source, target, change)
    if not change.kernels:  # All of them were left in float, and compute in it.
        return inputs
    return {name: _moved(array, variant.scheme, rng) for name, array in inputs.items()}


def _negligible(scheme: IntegerScheme | None) -> float:
    """Returns the noise, as a part of the power of the signal, that is not judged."""
    if scheme is None:
        return NEGLIGIBLE
    step = 1 / levels(scheme.activation_bits)
    return max(NEGLIGIBLE, CONSTANT_PART * step**2 / 12)


def _excess(
    values: Array,
    expected: Array,
    drawn: Array,
    limits: tuple[float, float] | None = None,
    *,
    floor: float = NEGLIGIBLE,
) -> Excess:
    """Compares the noise of an output with that of the draws, of draws x channels.

    Limits for all elements and for a channel are those by chance, unless they are given. Noise
    below ``floor``, a part of the power of the signal, is left aside.
    """
    signal = float(np.sum(np.square(expected, dtype=np.float64))) or 1.0
    noise = _noise_by_channel(values, expected)
    unjudged = floor * signal / noise.size
    noise, drawn = noise + unjudged, drawn + unjudged
    if limits is None:
        # A step of the outputs hides what rounding moves by less, and is noise as well: of a third
        # of its square, for the greatest integer of a probability is a whole step below 1.
        drawn += rounding_step(values) ** 2 / 3 * values.size / noise.size
        spread = 10 * np.log10(drawn.sum(axis=1)).std(ddof=1)
        channel_spread = 10 * np.log10(drawn).std(axis=0, ddof=1).mean()
        channel_limit = CHANNEL_ALLOWED_DB + CHANNEL_ALLOWED_DEVIATIONS * float(channel_spread)
        total_limit = ALLOWED_DB + ALLOWED_DEVIATIONS * float(spread)
        # A single channel is no average of many.
        limits = (channel_limit if noise.size == 1 else total_limit, channel_limit)
    rounding = drawn.mean(axis=0)
    return Excess(
        expected_snr_db=decibels(signal / rounding.sum()),
        total=decibels(noise.sum() / rounding.sum()),
        channel=decibels(float((noise / rounding).max())),
        limit=limits[0],
        channel_limit=limits[1],
    )


def rounding_step(values: Array) -> float:
    """Returns the least difference of two values; where they are integers times a step, the step.

    Among real numbers it is next to nothing. Two values alone do not tell it: then it is what 255
    steps reach the larger one by.
    """
    levels = np.unique(values.flat[:_MOST_STEPPED])
    if len(levels) > 2:
        return float(np.diff(levels).min())
    return float(np.abs(levels).max()) / 255


def _noise_by_channel(values: Array, expected: Array) -> Array:
    """Returns the sums of squared differences over all axes but the last."""
    squares = np.square(values.astype(np.float64) - expected)
    channels = squares.sum(axis=tuple(range(max(1, squares.ndim - 1))))
    return np.reshape(channels, -1)


class _Change:
    """Moves the elements of kernels by rounding errors, and counts the kernels."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.kernels = 0
        self._rng = rng

    def __call__(self, name: str, array: Array) -> Array:
        """Returns an array that rounding could have made as well."""
        del name
        self.kernels += 1
        uniform = self._rng.random(array.shape)
        if array.dtype.kind == "f":
            moved = array * (1 + (uniform - 0.5) * np.finfo(array.dtype).eps)
        else:
            low, high = array.min(), array.max()  # No integer that was not in use.
            up, down = uniform < _MOVED, uniform > 1 - _MOVED
            moved = np.clip(array.astype(np.int16) + up - down, low, high)
        return np.asarray(moved, array.dtype)


def _moved(array: Array, scheme: IntegerScheme | None, rng: np.random.Generator) -> Array:
    """Moves each input by the rounding error of that of another sample."""
    if array.dtype.kind != "f":
        return array
    if scheme is None:
        errors = array - array.astype(np.float16)
    else:
        axes = tuple(range(1, array.ndim)) if scheme.activations == "dynamic" else None
        low, high = (
            np.asarray(end(array, axis=axes, keepdims=True, initial=0.0))
            for end in (np.min, np.max)
        )
        step = np.maximum(high - low, np.finfo(np.float32).tiny) / levels(scheme.activation_bits)
        errors = array - np.rint(array / step) * step
    return np.asarray(array + errors[rng.permutation(len(array))], array.dtype)
