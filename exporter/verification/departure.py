"""The layer at which an artifact departs from the Keras model.

Converters fuse, split and rename, so a layer's output is looked for by its values among all tensors
that the artifact computes. A layer agrees if it is found there, or if what is computed from it is.
"""

import tempfile
from collections.abc import Mapping, Sequence
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
from exporter.verification.parity import load_arrays
from exporter.verification.probes import Probe, samples_within
from exporter.verification.rounding import RoundedAnew

SAMPLES = 64

FLOAT_SNR_DB = 60.0
"""The least SNR of a layer of an artifact in float that agrees."""

EXCESS_DB = 6.0
"""By what the noise of a layer in integers may exceed that of rounding kernels anew."""

_CHANNELS_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


@dataclass(frozen=True)
class Departure:
    """The first layer, in the order of the calls, at which an artifact departs.

    Attributes:
        layer: Path of the layer; later ones may have been fused with it.
        snr_db: SNR of the tensor of the artifact that is most like its output.
        expected_snr_db: The least that would be taken for the layer's output.
        agrees: Path of the last layer before it that agrees; None if there is none.
    """

    layer: str
    snr_db: float
    expected_snr_db: float
    agrees: str | None


def find_departure(
    artifact: Artifact, network: Network, probe: Probe, folder: Path
) -> Departure | None:
    """Compares the activations of an artifact with those of the Keras model, layer by layer.

    Returns:
        None if all layers agree.

    Raises:
        ChildError: If the runtime cannot run the artifact, or does not show activations.
    """
    count = samples_within(probe, SAMPLES)
    inputs = {name: array[:count] for name, array in probe.inputs.items()}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        np.savez(Path(name, _INPUTS), **inputs)  # type: ignore[arg-type]
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
            data=2 * artifact.size + sum(array.nbytes for array in inputs.values()),
        )
        tensors, drawn = (load_arrays(Path(name, file)) for file in (_TENSORS, _DRAWN))
    found = [
        _Layer(path, sources, *_most_alike(output, tensors, drawn))
        for path, output, sources in _layer_outputs(network, inputs)
    ]
    return _first_departure(found)


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
    np.savez(folder / _TENSORS, **{str(i): array for i, array in enumerate(own.values())})  # type: ignore[arg-type]
    np.savez(folder / _DRAWN, **{str(i): array for i, array in enumerate(noise.values())})


def _layer_outputs(
    network: Network, inputs: Mapping[str, Array]
) -> list[tuple[str, Array, list[str]]]:
    """Returns path, output and the paths of the layers it is computed from, in order of calls."""
    import keras

    signature, paths = network.signature, {id(x): path for path, x in network.layers.items()}
    with called(network.layers.values()) as calls:
        signature(**signature.tensors(inputs))
    found, makers = [], dict[int, str]()
    for key, ((given, result), *_) in calls.items():
        sources = [makers[id(t)] for t in keras.tree.flatten(given) if id(t) in makers]
        results = [t for t in keras.tree.flatten(result) if t is not None]
        makers.update(dict.fromkeys(map(id, results), paths[key]))
        if results and results[0].dtype.is_floating and len(results[0].shape):
            found.append((paths[key], results[0].numpy().astype(np.float32), sources))
    return found


@dataclass(frozen=True)
class _Layer:
    """A layer, those that it is computed from, and the SNR of what is most like its output."""

    path: str
    sources: Sequence[str]
    snr_db: float
    least_db: float

    @property
    def agrees(self) -> bool:
        return self.snr_db >= self.least_db


def _most_alike(
    output: Array, tensors: Mapping[str, Array], drawn: Mapping[str, Array]
) -> tuple[float, float]:
    """Returns the SNR of the tensor that is most like an output, and the least that agrees."""
    best = (-np.inf, FLOAT_SNR_DB)
    signal = float(np.mean(np.square(output, dtype=np.float64)))
    axes = _CHANNELS_FIRST.get(output.ndim)
    forms = [output] if axes is None else [output, output.transpose(axes)]
    for name, tensor in tensors.items():
        for form in forms:
            if tensor.shape == form.shape or tensor.size == form.size:
                ratio, least = snr_db(tensor.reshape(form.shape), form), FLOAT_SNR_DB
                if name in drawn and drawn[name] > 0:
                    least = min(least, decibels(signal / float(drawn[name])) - EXCESS_DB)
                best = max(best, (ratio, least), key=lambda pair: pair[0] - pair[1])
    return best


def _first_departure(layers: Sequence[_Layer]) -> Departure | None:
    """Returns the first layer that neither agrees nor has a layer after it that does."""
    explained = {layer.path for layer in layers if layer.agrees}
    for layer in reversed(layers):
        if layer.path in explained:
            explained.update(layer.sources)
    last = None
    for layer in layers:
        if layer.path not in explained:
            known = [path for path in layer.sources if path in explained]
            return Departure(layer.path, layer.snr_db, layer.least_db, known[0] if known else last)
        last = layer.path
    return None
