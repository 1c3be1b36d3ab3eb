"""Proves that the thin factors survived conversion, by the tensors that an artifact stores.

A converter may fold two matrix products back into one, or store a tensor twice, and still predict
the same. So the constants of the artifact are compared with the weights of the compressed model.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from exporter.formats.base import StoredTensor
from exporter.graph.network import Network
from exporter.graph.recurrent import count_steps
from exporter.graph.walk import own_weights
from exporter.lowrank.engine import Compressed
from exporter.quantization.granularity import SMALL_KERNEL

WEIGHT_SLACK = 0.05
WEIGHT_ALLOWANCE = 16 * 1024
FILE_SLACK = 0.25
FILE_ALLOWANCE = 256 * 1024
LAYER_ALLOWANCE = 12 * 1024
"""The most bytes of the graph of one layer; a SavedModel, which has two graphs, takes 7 to 9 KB."""

FLOAT_BITS = 32

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LayerProof:
    """The factors of one layer, searched for in an artifact.

    Attributes:
        factors: Shapes of its factors.
        found: Whether the artifact stores as many tensors of these sizes as the compressed model.
        dense_shape: (m, n) of the matrix that the factors replace.
        dense_gone: Whether the artifact stores no more m x n matrices than the compressed model.
    """

    layer: str
    factors: tuple[tuple[int, ...], ...]
    found: bool
    dense_shape: tuple[int, int]
    dense_gone: bool


@dataclass(frozen=True)
class StructureProof:
    """The tensors of an artifact, compared with the plan.

    Attributes:
        predicted_bytes: Bytes of the weights of the compressed model, in the artifact's variant.
        stored_bytes: Bytes of the distinct constants in the artifact.
        weights_as_predicted: Whether ``stored_bytes`` is within 5 % and 16 KiB of the prediction.
        file_as_predicted: Whether ``file_bytes`` exceeds it by at most 25 %, 256 KiB, and 12 KiB
            for each layer and for each step of a recurrent one.
    """

    layers: tuple[LayerProof, ...]
    predicted_bytes: int
    stored_bytes: int
    file_bytes: int
    weights_as_predicted: bool
    file_as_predicted: bool

    @property
    def passed(self) -> bool:
        """Whether all factors were found, and no matrix that they replace.

        Other bytes than predicted are no fault: converters store constants of their own.
        """
        return all(proof.found and proof.dense_gone for proof in self.layers)


def prove_structure(
    stored: Sequence[StoredTensor],
    file_bytes: int,
    compressed: Compressed,
    weight_bits: int = FLOAT_BITS,
    widest_bits: int | None = None,
) -> StructureProof:
    """Compares all constants of an artifact with the weights of the compressed model.

    ``weight_bits`` are the bits of an element of a kernel in the artifact; up to ``widest_bits``,
    where layers differ.
    """
    least, predicted, most = _bytes_of_weights(compressed.network, weight_bits)
    if widest_bits not in (None, weight_bits):
        _, predicted, most = _bytes_of_weights(compressed.network, widest_bits)
    stored, weights = _distinct(stored), _described(compressed.model.weights)
    # Biases are left out: converters drop one that is zero.
    factors = _distinct(
        StoredTensor.of(weight.path, weight.numpy().reshape(matrix))
        for parts in compressed.factors.values()
        for weight, matrix in zip(parts.weights, parts.matrices, strict=True)
    )
    filled = [tensor for tensor in stored if not tensor.is_zero]
    proofs = []
    for plan in compressed.plan.layers:
        if plan.rank is not None and plan.shape is not None:
            parts = compressed.factors[plan.name]
            found = all(_count(stored, m) >= _count(factors, m) for m in parts.matrices)
            gone = _count(filled, parts.replaced) <= _count(weights, parts.replaced)
            shapes = tuple(tuple(weight.shape) for weight in parts.weights)
            proofs.append(LayerProof(plan.name, shapes, found, plan.shape, gone))
    actual = sum(tensor.nbytes for tensor in _distinct(stored))
    slack = WEIGHT_SLACK * predicted + WEIGHT_ALLOWANCE
    layers = compressed.network.layers
    # A converter may write out the steps of a loop.
    graph = FILE_ALLOWANCE + LAYER_ALLOWANCE * (len(layers) + count_steps(layers))
    return StructureProof(
        layers=tuple(proofs),
        predicted_bytes=predicted,
        stored_bytes=actual,
        file_bytes=file_bytes,
        weights_as_predicted=least - slack <= actual <= most + slack,
        file_as_predicted=file_bytes <= (1 + FILE_SLACK) * most + graph,
    )


def _bytes_of_weights(network: Network, weight_bits: int) -> tuple[int, int, int]:
    """Returns the bytes of all weights as they are stored in an artifact: least, likely, most."""
    layers = network.layers.values()
    if weight_bits == FLOAT_BITS:
        # A converter may store a weight in the type of the computation, or half precision as
        # float32; and equal weights once, or each of them.
        cast = [
            (weight.numpy().size, _itemsize(weight.dtype), _itemsize(layer.compute_dtype))
            for layer in layers
            for weight in own_weights(layer)
        ]
        predicted = sum(tensor.nbytes for tensor in _distinct(_described(network.model.weights)))
        least = sum(size * min(stored, computed) for size, stored, computed in cast)
        most = sum(size * max(stored, _FLOAT32_BYTES) for size, stored, _ in cast)
        return min(least, predicted), predicted, most
    shapes = [tuple(weight.shape) for layer in layers for weight in own_weights(layer)]
    kernels = [shape for shape in shapes if len(shape) > 1]
    others = sum(math.prod(shape) for shape in shapes if len(shape) <= 1)
    least = sum(map(math.prod, kernels)) * weight_bits // 8
    predicted = least + others * _FLOAT32_BYTES
    # Normalisations may be folded; biases take 16 to 64 bits; small kernels may stay in float32;
    # and each channel may have two scales, for its kernel and for its bias.
    small = sum(size for size in map(math.prod, kernels) if size < SMALL_KERNEL)
    channels = sum(shape[-1] for shape in kernels)
    return least, predicted, predicted + (small + others + 2 * channels) * _FLOAT32_BYTES


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _described(weights: Iterable[Any]) -> list[StoredTensor]:
    return [StoredTensor.of(weight.path, weight.numpy()) for weight in weights]


def _distinct(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    return list({(tensor.shape, tensor.digest): tensor for tensor in tensors}.values())


def _count(tensors: Sequence[StoredTensor], matrix: tuple[int, int]) -> int:
    """Counts the tensors that hold as many rows and columns as a matrix, in whatever layout.

    Converters transpose, add axes of one, and merge or split axes, such as the heads of attention.
    """
    rows, columns = matrix
    return sum(
        math.prod(tensor.shape) == rows * columns
        and any(
            math.prod(part) == rows
            for count in range(len(tensor.shape) + 1)
            for part in combinations(tensor.shape, count)
        )
        for tensor in tensors
    )
