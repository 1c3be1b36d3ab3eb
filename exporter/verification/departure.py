"""How an artifact and the Keras model agree layer by layer, and the layer where they depart.

Converters fuse, split and rename, so a layer's output is looked for by its values among all tensors
that the artifact computes. A layer agrees if it is found there, or if what is computed from it is.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.data.metrics import decibels, snr_db
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.graph.hooks import called
from exporter.graph.network import Network
from exporter.isolation import call_in_child
from exporter.lowrank.calibration import activation_elements
from exporter.verification.parity import load_arrays, save_arrays
from exporter.verification.probes import Probe, samples_within
from exporter.verification.rounding import RoundedAnew

SAMPLES = 64
MOST_ELEMENTS = 2**26
"""The most samples, and the most elements of all activations, that are compared."""

FLOAT_SNR_DB = 60.0
"""The least SNR of a layer of an artifact in float that agrees."""

EXCESS_DB = 6.0
"""By what the noise of a layer in integers may exceed that of rounding kernels anew."""


@dataclass(frozen=True)
class LayerAgreement:
    """The output of a layer, and the tensor of an artifact that is most like it.

    Attributes:
        layer: Path of the layer.
        sources: Paths of the layers that it is computed from.
        snr_db: Signal to noise ratio of that tensor.
        least_db: The least that is taken for the layer's output.
    """

    layer: str
    sources: tuple[str, ...]
    snr_db: float
    least_db: float

    @property
    def agrees(self) -> bool:
        """Whether the tensor is the layer's output."""
        return self.snr_db >= self.least_db


@dataclass(frozen=True)
class Departure:
    """The first layer, in the order of the calls, at which an artifact departs.

    Attributes:
        layer: Path of the layer; later ones may have been fused with it.
        snr_db: SNR of the tensor of the artifact that is most like its output.
        least_db: The least that is taken for the layer's output.
        agrees: Path of the last layer before it that agrees; None if there is none.
    """

    layer: str
    snr_db: float
    least_db: float
    agrees: str | None


def compare_layers(
    artifact: Artifact, network: Network, probe: Probe, folder: Path
) -> tuple[LayerAgreement, ...]:
    """Compares the activations of an artifact with those of the Keras model, in order of calls.

    Raises:
        ChildError: If the runtime cannot run the artifact, or does not show activations.
    """
    affordable = MOST_ELEMENTS // max(1, activation_elements(network))
    count = samples_within(probe, max(1, min(SAMPLES, affordable)))
    inputs = {name: array[:count] for name, array in probe.inputs.items()}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        save_arrays(Path(name, _INPUTS), inputs)
        job = {
            "format": artifact.format,
            "variant": artifact.variant,
            "path": str(artifact.path),
            "folder": name,
        }
        call_in_child(
            f"{__name__}:_observe_here",
            job,
            FORMATS[artifact.format].imports,
            work=2 * count * network.macs,
            data=2 * artifact.size + 4 * 4 * count * activation_elements(network),
        )
        tensors, drawn = (load_arrays(Path(name, file)) for file in (_TENSORS, _DRAWN))
    return tuple(
        LayerAgreement(path, sources, *_most_alike(output, tensors, drawn))
        for path, output, sources in _layer_outputs(network, inputs)
    )


def find_departure(layers: Sequence[LayerAgreement]) -> Departure | None:
    """Returns the first layer that neither agrees nor has a layer computed from it that does."""
    explained = {each.layer for each in layers if each.agrees}
    for each in reversed(layers):
        if each.layer in explained:
            explained.update(each.sources)
    last = None
    for each in layers:
        if each.layer not in explained:
            known = [path for path in each.sources if path in explained]
            return Departure(each.layer, each.snr_db, each.least_db, known[0] if known else last)
        last = each.layer
    return None


def losses_by_layer(layers: Sequence[LayerAgreement]) -> dict[str, float]:
    """Returns the part of the noise that each layer that agrees adds, 0 to 1, the largest first.

    It is what the ratio of noise to signal grows by from its sources to its output.
    """
    ratios: dict[str, float] = {}
    added: dict[str, float] = {}
    for each in layers:
        before = max((ratios.get(path, 0.0) for path in each.sources), default=0.0)
        ratios[each.layer] = before
        if each.agrees:
            ratios[each.layer] = 10 ** (-each.snr_db / 10)
            added[each.layer] = max(0.0, ratios[each.layer] - before)
    total = sum(added.values()) or 1.0
    return {
        path: part / total for path, part in sorted(added.items(), key=lambda p: -p[1]) if part > 0
    }


_INPUTS, _TENSORS, _DRAWN = "inputs.npz", "tensors.npz", "drawn.npz"


def _observe_here(job: dict[str, Any]) -> None:
    """Runs in the child of ``find_departure``: writes activations, and their noise by rounding."""
    fmt, folder, source = FORMATS[job["format"]], Path(job["folder"]), Path(job["path"])
    inputs = load_arrays(folder / _INPUTS)
    own = {
        name: array
        for name, array in fmt.activations(source, inputs).items()
        if array.dtype.kind == "f"
    }
    noise = {}
    if fmt.variant(job["variant"]).rule is not None:
        path = folder / f"rounded-{source.name}"
        fmt.rewrite_kernels(source, path, RoundedAnew(np.random.default_rng(0)))
        moved = fmt.activations(path, inputs)
        noise = {name: np.mean(np.square(moved[name] - array)) for name, array in own.items()}
    # Names of tensors may have slashes, which archives take for folders.
    save_arrays(folder / _TENSORS, {str(i): array for i, array in enumerate(own.values())})
    save_arrays(folder / _DRAWN, {str(i): array for i, array in enumerate(noise.values())})


def _layer_outputs(
    network: Network, inputs: Mapping[str, Array]
) -> list[tuple[str, Array, tuple[str, ...]]]:
    """Returns path, output and the paths of the layers it is computed from, in order of calls."""
    import keras

    signature, paths = network.signature, {id(x): path for path, x in network.layers.items()}
    with called(network.layers.values()) as calls:
        signature(**signature.tensors(inputs))
    found, makers = [], dict[int, str]()
    for key, ((given, result), *_) in calls.items():
        known = (makers.get(id(tensor)) for tensor in keras.tree.flatten(given))
        sources = tuple(path for path in known if path is not None)
        results = [t for t in keras.tree.flatten(result) if t is not None]
        makers.update(dict.fromkeys(map(id, results), paths[key]))
        if results and results[0].dtype.is_floating and len(results[0].shape):
            found.append((paths[key], results[0].numpy().astype(np.float32), sources))
    return found


def _most_alike(
    output: Array, tensors: Mapping[str, Array], drawn: Mapping[str, Array]
) -> tuple[float, float]:
    """Returns the SNR of the tensor that is most like an output, and the least that agrees.

    Channels of quantized artifacts may have scales of their own, which later layers undo.
    """
    best = (-np.inf, FLOAT_SNR_DB)
    for name, tensor in tensors.items():
        least, power = FLOAT_SNR_DB, float(np.mean(np.square(tensor, dtype=np.float64)))
        if drawn.get(name):
            least = min(least, decibels(power / float(drawn[name])) - EXCESS_DB)
        for values in _in_layout(tensor, output.shape):
            alike = _unscaled(values, output) if drawn else values
            best = max(best, (snr_db(alike, output), least), key=lambda pair: pair[0] - pair[1])
    return best


def _in_layout(tensor: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yields a tensor as one of some shape, in the order of axes that runtimes may have."""
    if tensor.size == math.prod(shape):
        yield tensor.reshape(shape)
    if len(shape) > 2 and tensor.shape == (shape[0], shape[-1], *shape[1:-1]):
        yield np.moveaxis(tensor, 1, -1)


def _unscaled(values: Array, output: Array) -> Array:
    """Divides channels, along the last axis, by the positive scales that suit an output best."""
    axes = tuple(range(output.ndim - 1))
    power = np.sum(np.square(output), axis=axes)
    scales = np.sum(values * output, axis=axes) / np.where(power > 0, power, 1)
    return np.asarray(values / np.where(scales > 0, scales, 1))
