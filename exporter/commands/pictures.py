"""Gathers what the report draws from the models of a run, while they are in memory."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from exporter.card import Normalization
from exporter.data import Array, Dataset, in_memory
from exporter.graph.hooks import watched
from exporter.graph.network import Network
from exporter.graph.types import Variable
from exporter.lowrank.calibration import activation_elements
from exporter.lowrank.candidates import Candidate
from exporter.lowrank.engine import Compressed, Engine, Factors
from exporter.lowrank.linalg.moments import Floats
from exporter.report.page.pictures import Named, Pictures, evenly
from exporter.verification.departure import MOST_ELEMENTS
from exporter.verification.verifier import Verifier

MOST_KERNELS = 12
"""Kernels whose weights are drawn, the largest ones."""

SPECTRUM_POINTS = 192
SPECTRUM_WORK = 2e10
"""Values of a spectrum that are kept; and m n min(m, n) of all kernels whose spectra are computed,
some seconds."""

MOST_SAMPLES = 256
"""Samples on which errors of layers are measured."""

MOST_CLASSES = 64
MOST_CHANGES = 12
MOST_SIDE = 64
"""Classes of a confusion matrix, samples that are shown, and pixels of their sides."""

BASELINE, COMPRESSED = "baseline", "compressed"


@dataclass(frozen=True)
class LayerPictures:
    """What is drawn of layers, and the measured errors by kernel; see ``Pictures``."""

    spectra: Named = field(default_factory=dict)
    weights: Mapping[str, Named] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


def picture_layers(engine: Engine, compressed: Compressed, dataset: Dataset) -> LayerPictures:
    """Draws the factorized kernels, and measures what their layers lose on test samples."""
    chosen = [c for c in engine.candidates if c.kernel and c.name in compressed.factors]
    largest = sorted(chosen, key=lambda c: -c.params())[:MOST_KERNELS]
    weights = {c.name: _weights(c, compressed.factors[c.name]) for c in largest}
    return LayerPictures(
        {c.name: spectrum for c, spectrum in _spectra(engine, chosen)},
        {name: parts for name, parts in weights.items() if parts},
        _errors(engine, compressed, chosen, dataset),
    )


def _spectra(engine: Engine, chosen: list[Candidate]) -> Iterator[tuple[Candidate, Array]]:
    left = SPECTRUM_WORK
    for candidate in chosen:
        kernel = candidate.kernel
        if kernel is None:
            continue
        left -= kernel.groups * kernel.m * kernel.n * kernel.full_rank
        if left < 0:
            return
        curve = kernel.error_curve(engine.moments.get(candidate.name))
        values = np.sqrt(np.maximum(-np.diff(curve), 0.0))
        picks = evenly(len(values), SPECTRUM_POINTS)
        # Where a spectrum falls, all of its first values count.
        picks = np.union1d(picks, np.arange(min(32, len(values))))
        scaled = values[picks] / (values.max() or 1.0)
        yield candidate, np.stack([picks + 1, scaled]).astype(np.float32)


def _weights(candidate: Candidate, factors: Factors) -> dict[str, Array]:
    """Returns rows and columns of a kernel and its factors; none where they are no plain chain."""
    kernel, shapes = candidate.kernel, factors.matrices
    chained = all(one[1] == other[0] for one, other in pairwise(shapes))
    ends = (shapes[0][0], shapes[-1][1])
    if kernel is None or kernel.groups > 1 or not chained or ends != factors.replaced:
        return {}
    whole = kernel.matrices(precise=False)[0]
    first, *others = map(_matrix, factors.weights, shapes)
    left, last = np.linalg.multi_dot([first, *others[:-1]]) if others[1:] else first, others[-1]
    if not all(np.isfinite(part).all() for part in (left, last)):
        return {}
    # The factors have S merged into them, and maybe a rotation: its thin SVD shows the product.
    (q_left, r_left), (q_last, r_last) = np.linalg.qr(left), np.linalg.qr(last.T)
    inner, values, outer = np.linalg.svd(r_left @ r_last.T)
    u, v = q_left @ inner, outer @ q_last.T
    rows, columns, ranks = (evenly(count) for count in (*factors.replaced, len(values)))
    product = (u[rows] * values) @ v[:, columns]
    kept = whole[np.ix_(rows, columns)]
    drawn = {
        "W": kept,
        "U": u[np.ix_(rows, ranks)],
        "S": np.diag(values[ranks]),
        "V": v[np.ix_(ranks, columns)],
        "product": product,
        "difference": kept - product,
    }
    return {name: array.astype(np.float16) for name, array in drawn.items()}


def _matrix(weight: Variable, shape: tuple[int, int]) -> Floats:
    matrix: Floats = weight.numpy().astype(np.float64).reshape(shape)
    return matrix


def _errors(
    engine: Engine, compressed: Compressed, chosen: list[Candidate], dataset: Dataset
) -> dict[str, float]:
    """Measures by kernel what ``Factors.relative_error`` predicts, on samples of the test part.

    Outputs are looked at where a layer hands them to its activation; other kernels are left out.
    """
    part, network = dataset.test or dataset.validation or dataset.train, engine.network
    seen = [c for c in chosen if c.kernel and c.kernel.gradient_at == "activation"]
    seen = [c for c in seen if c.kernel and c.kernel.layer is c.layer]
    batch = network.fixed_batch or 1
    affordable = min(MOST_SAMPLES, MOST_ELEMENTS // max(1, activation_elements(network)))
    count = max(1, affordable // batch) * batch
    if part is None or not seen or batch > len(part):
        return {}
    inputs = in_memory(part.take(slice(min(count, len(part) // batch * batch))).inputs)
    before, after = (_outputs(each, inputs, seen) for each in (network, compressed.network))
    errors = {}
    for candidate, y, z in zip(seen, before, after, strict=True):
        kernel, moments = candidate.kernel, engine.moments.get(candidate.name)
        weights = moments.fisher if moments else None
        fisher = weights.ridged if weights else None
        # By data, a bias corrects the error of the mean.
        corrected = kernel is not None and kernel.has_bias and moments is not None
        energy = _energy(y - y.mean(axis=0) if corrected else y, fisher)
        if energy > 0:
            errors[candidate.name] = math.sqrt(_energy(z - y, fisher) / energy)
    return errors


def _outputs(network: Network, inputs: Named, chosen: list[Candidate]) -> list[Array]:
    """Returns the outputs of kernels, rows x g x n, without the biases of the original layers."""
    layers = [network.layers[candidate.path] for candidate in chosen]
    with watched([(layer, "activation") for layer in layers]) as seen:
        network.signature(**network.signature.tensors(inputs))
    return [
        candidate.kernel.rows_of(seen[id(layer)], biased=True).numpy()
        for candidate, layer in zip(chosen, layers, strict=True)
        if candidate.kernel
    ]


def _energy(rows: Array, fisher: Floats | None) -> float:
    """Returns the sum of squares of rows x g x n, weighted by g x n x n."""
    if fisher is None:
        return float(np.sum(np.square(rows, dtype=np.float64)))
    weighted = np.einsum("rgn,gnm->rgm", rows, fisher, optimize=True)
    return float(np.vdot(weighted, rows))


def picture_run(
    layers: LayerPictures, verifier: Verifier, normalization: Mapping[str, Normalization]
) -> Pictures:
    """Adds what became of the predictions on the first probe, if they are classes."""
    probe = verifier.probes[0]
    confusion, changes, images = {}, {}, {}
    for output, before in verifier.baseline.items():
        task, labels = verifier.tasks[output], probe.labels.get(output)
        after = verifier.reference[probe.name][output]
        if not task.classes or before.ndim != 2 or not np.isfinite(before).all():
            continue
        recorded = {
            name: outputs[output]
            for name, outputs in verifier.recorded.items()
            if output in outputs and outputs[output].shape == before.shape
        }
        classes = {
            name: task.predicted(values)
            for name, values in {BASELINE: before, COMPRESSED: after, **recorded}.items()
        }
        if labels is not None and task.classes <= MOST_CLASSES:
            confusion[output] = {
                name: _counts(labels, classes[name], task.classes)
                for name in (BASELINE, COMPRESSED)
            }
        changed = np.flatnonzero(classes[COMPRESSED] != classes[BASELINE])[:MOST_CHANGES]
        told = {} if labels is None else {"label": labels}
        found = {"sample": np.arange(len(before)), **told, **classes}
        changes[output] = {name: array[changed] for name, array in found.items()}
        drawn = _images(probe.inputs, changed, normalization) if len(changed) else None
        if drawn is not None:
            images[output] = drawn
    return Pictures(layers.spectra, layers.weights, confusion, changes, images)


def _counts(labels: Array, classes: Array, count: int) -> Array:
    numbers = np.bincount(labels * count + classes, minlength=count**2)
    return numbers.reshape(count, count).astype(np.int32)


def _images(
    inputs: Named, chosen: Array, normalization: Mapping[str, Normalization]
) -> Array | None:
    """Returns samples of the first input as bytes, stretched to its range; None for no images."""
    name, array = next(iter(inputs.items()))
    channels = array.shape[3] if array.ndim == 4 else 1
    if array.ndim not in (3, 4) or channels not in (1, 3) or min(array.shape[1:3]) < 4:
        return None
    pixels = array[chosen].astype(np.float32)
    rows, columns = (evenly(size, MOST_SIDE) for size in pixels.shape[1:3])
    pixels = pixels[:, rows][:, :, columns]
    if channels == 1:
        pixels = pixels.reshape(pixels.shape[:3])
    elif name in normalization and normalization[name].reverse_channels:
        pixels = pixels[..., ::-1]
    low, high = pixels.min(), pixels.max()
    return np.asarray(255 * (pixels - low) / ((high - low) or 1.0)).round().astype(np.uint8)
