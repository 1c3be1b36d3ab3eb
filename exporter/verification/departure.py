"""How an artifact and the Keras model agree layer by layer, and the layer where they depart.

Converters fuse, split and rename, so a layer's output is looked for by its values among all tensors
that the artifact computes. Where none is like it, it has been fused, and what is computed from it
tells whether it agrees.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.data.metrics import decibels, snr_db
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.graph.hooks import called
from exporter.graph.layers import kind_of
from exporter.graph.network import Network
from exporter.isolation import call_in_child
from exporter.lowrank.calibration import activation_elements
from exporter.lowrank.engine import Compressed
from exporter.verification.parity import load_arrays, save_arrays
from exporter.verification.probes import Probe, samples_within
from exporter.verification.rounding import round_anew, rounding_step

SAMPLES = 64
MOST_ELEMENTS = 2**26
"""The most samples, and the most elements of all activations, that are compared."""

FLOAT_SNR_DB = 60.0
"""The least SNR of a layer of an artifact in float that agrees."""

EXCESS_DB, SINGLE_EXCESS_DB = 6.0, 12.0
"""By what the noise of a layer in integers may exceed that of rounding anew: as the mean of many
channels, and of a single one."""

DRAWS = 3
"""Number of times that an artifact is rounded anew."""

MOST_AXES = 5
"""Tensors of more axes are not looked for in other orders of them."""

FOUND_DB, ALIKE_DB = 10.0, 0.1
"""A tensor is the output of a layer if it is at least so much like it, in SNR, and no other layer's
is nearer to it by more than that."""


@dataclass(frozen=True)
class LayerAgreement:
    """The output of a layer, and the tensor of an artifact that is most like it.

    Attributes:
        layer: Path of the layer.
        sources: Paths of the layers that it is computed from.
        snr_db: Signal to noise ratio of that tensor.
        least_db: The least that agrees.
        is_found: Whether that tensor is the layer's output, with whatever noise.
    """

    layer: str
    sources: tuple[str, ...]
    snr_db: float
    least_db: float
    is_found: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the tensor is as near to the layer's output as rounding leaves it."""
        return self.snr_db >= self.least_db

    @property
    def departs(self) -> bool:
        """Whether the layer's output was found, and is further from it than rounding explains."""
        return self.is_found and not self.agrees


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
    artifact: Artifact, compressed: Compressed, probe: Probe, folder: Path
) -> tuple[LayerAgreement, ...]:
    """Compares the activations of an artifact with those of the Keras model, in order of calls.

    What factors give each other is never found, for quantization may choose it anew; nor are
    normalizations, of which other operators than the last give nearly the same.

    Raises:
        ChildError: If the runtime cannot run the artifact, or does not show activations.
    """
    network = compressed.network
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
            work=(1 + DRAWS) * count * network.macs,
            data=2 * artifact.size + 4 * 4 * count * activation_elements(network),
        )
        tensors, drawn = (load_arrays(Path(name, file)) for file in (_TENSORS, _DRAWN))
    outputs = _layer_outputs(network, inputs)
    composed = {path for path, layer in network.layers.items() if kind_of(layer).composed}
    # Converters fold normalisations, with their offsets, into the layers before them.
    normalized = {id(x) for _, x, layer in network.links if kind_of(layer).composed}
    folded = {path for path, layer in network.layers.items() if id(layer) in normalized}
    hidden = compressed.latent | composed | folded
    variant, most = FORMATS[artifact.format].variant(artifact.variant), FLOAT_SNR_DB
    if variant.rule is not None and variant.scheme is None:
        # In half precision each operator rounds what it computes; the draws round kernels alone.
        most = min(most, variant.rule.snr_db)
    alike = [_alike(output, tensors, drawn, most) for _, output, _ in outputs]
    nearest: dict[str, float] = {}
    for tensor, (snr, _) in (pair for found in alike for pair in found.items()):
        nearest[tensor] = max(nearest.get(tensor, FOUND_DB), snr - ALIKE_DB)
    return tuple(
        _agreement(path, sources, found, {} if path in hidden else nearest)
        for (path, _, sources), found in zip(outputs, alike, strict=True)
    )


def _agreement(
    path: str,
    sources: tuple[str, ...],
    alike: Mapping[str, tuple[float, float]],
    nearest: Mapping[str, float],
) -> LayerAgreement:
    """Judges a layer by the tensors that are its output, if there are any, otherwise by all."""
    own = [pair for tensor, pair in alike.items() if pair[0] >= nearest.get(tensor, np.inf)]
    best = max(own or alike.values(), key=lambda p: p[0] - p[1], default=(-np.inf, FLOAT_SNR_DB))
    return LayerAgreement(path, sources, *best, is_found=bool(own))


def find_departure(layers: Sequence[LayerAgreement]) -> Departure | None:
    """Returns the first layer that departs, or that no layer that agrees is computed from."""
    explained = {each.layer for each in layers if each.agrees}
    for each in reversed(layers):
        if each.layer in explained:
            explained.update(each.sources)
    last = None
    for each in layers:
        if each.layer not in explained or each.departs:
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
    variant = fmt.variant(job["variant"])
    if variant.rule is not None:
        rng, path = np.random.default_rng(0), folder / f"rounded-{source.name}"
        noise = {name: rounding_step(array) ** 2 / 12 for name, array in own.items()}
        for _ in range(DRAWS):
            moved = round_anew(source, path, inputs, fmt=fmt, variant=variant, rng=rng)
            drawn = fmt.activations(path, moved)
            for name, array in own.items():
                noise[name] += float(np.mean(np.square(drawn[name] - array))) / DRAWS
    # Names of tensors may have slashes, which archives take for folders.
    save_arrays(folder / _TENSORS, {str(i): array for i, array in enumerate(own.values())})
    powers = {str(i): np.asarray(power) for i, power in enumerate(noise.values())}
    save_arrays(folder / _DRAWN, powers)


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


def _alike(
    output: Array, tensors: Mapping[str, Array], drawn: Mapping[str, Array], most: float
) -> dict[str, tuple[float, float]]:
    """Returns, for each tensor that may be an output, its SNR and the least that agrees.

    That is at most ``most``.

    Channels of quantized artifacts may have scales of their own, which later layers undo.
    """
    found: dict[str, tuple[float, float]] = {}
    for name, tensor in tensors.items():
        least, power = most, float(np.mean(np.square(tensor, dtype=np.float64)))
        if drawn.get(name):
            excess = EXCESS_DB + (SINGLE_EXCESS_DB - EXCESS_DB) / output.shape[-1]
            least = min(least, decibels(power / float(drawn[name])) - excess)
        for values in _in_layout(tensor, output.shape):
            snr = snr_db(_unscaled(values, output) if drawn else values, output)
            found[name] = max(found.get(name, (-np.inf, least)), (snr, least))
    return found


def _in_layout(tensor: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yields a tensor as one of some shape, with the axes in any order that gives it.

    Runtimes put channels, or steps of a sequence, first.
    """
    if tensor.size != math.prod(shape):
        return
    yield tensor.reshape(shape)
    squeezed, wanted = tensor.squeeze(), tuple(size for size in shape if size != 1)
    orders = permutations(range(squeezed.ndim)) if squeezed.ndim <= MOST_AXES else ()
    for order in orders:
        same = order == tuple(range(squeezed.ndim))
        if not same and tuple(squeezed.shape[axis] for axis in order) == wanted:
            yield squeezed.transpose(order).reshape(shape)


def _unscaled(values: Array, output: Array) -> Array:
    """Multiplies channels, along the last axis, by what fits an output best, by least squares."""
    axes = tuple(range(output.ndim - 1))
    values = values.astype(np.float64)
    power = np.sum(np.square(values), axis=axes)
    scales = np.sum(values * output, axis=axes) / np.where(power > 0, power, 1)
    return np.asarray(values * np.maximum(scales, 0))
