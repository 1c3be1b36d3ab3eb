"""Whether the thin factors survived conversion: what is stored in the artifact, counted.

A converter may fold two matrix products back into one, or store a tensor twice, and still predict
the same. So the constants of the artifact are listed and held against the compressed model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.formats.base import StoredTensor
from exporter.lowrank.ranks import LayerPlan

WEIGHT_SLACK = 0.05
WEIGHT_ALLOWANCE = 16 * 1024
FILE_SLACK = 0.25
FILE_ALLOWANCE = 256 * 1024


@dataclass(frozen=True)
class LayerProof:
    """What was looked for, and found, of one factorized layer.

    Attributes:
        layer: Path of the layer.
        factors: Shapes of its factors.
        found: Whether the artifact stores as many tensors of each of these shapes as the
            compressed model has.
        dense_shape: (m, n) of the matrix that the factors replace.
        dense_gone: Whether the artifact stores no more m x n matrices than the compressed model has.
    """

    layer: str
    factors: tuple[tuple[int, ...], ...]
    found: bool
    dense_shape: tuple[int, int]
    dense_gone: bool


@dataclass(frozen=True)
class StructureProof:
    """What is stored in an artifact, held against the plan.

    Attributes:
        layers: One entry a factorized layer.
        predicted_bytes: Bytes of the weights of the compressed model.
        stored_bytes: Bytes of the distinct constants in the artifact.
        file_bytes: Bytes of the artifact.
        weights_as_predicted: Whether ``stored_bytes`` is within 5 % and 16 KiB of the prediction.
        file_as_predicted: Whether ``file_bytes`` exceeds it by at most 25 % and 256 KiB.
    """

    layers: tuple[LayerProof, ...]
    predicted_bytes: int
    stored_bytes: int
    file_bytes: int
    weights_as_predicted: bool
    file_as_predicted: bool

    @property
    def passed(self) -> bool:
        """Whether all factors were found, no dense matrix was, and the bytes are as predicted."""
        return (
            self.weights_as_predicted
            and self.file_as_predicted
            and all(proof.found and proof.dense_gone for proof in self.layers)
        )


def prove_structure(
    stored: Sequence[StoredTensor],
    file_bytes: int,
    model: Any,
    plans: Iterable[LayerPlan],
    factors: Mapping[str, Sequence[Any]],
) -> StructureProof:
    """Counts what an artifact stores.

    Orientation is left open, for formats transpose at will.

    Args:
        stored: All constants of the artifact.
        file_bytes: Its size.
        model: The compressed Keras model.
        plans: The layers of the rank plan.
        factors: The layers that stand in for each factorized layer, by its path.
    """
    weights = [StoredTensor.of(w.path, w.numpy()) for w in model.weights]
    expected, present = _count(weights), _count(stored)
    proofs = []
    for plan in plans:
        if plan.rank is None or plan.shape is None:
            continue
        shapes = tuple(tuple(layer.kernel.shape) for layer in factors[plan.name])
        found = all(present[_key(shape)] >= expected[_key(shape)] for shape in shapes)
        gone = present[_key(plan.shape)] <= expected[_key(plan.shape)]
        proofs.append(LayerProof(plan.name, shapes, found, plan.shape, gone))
    predicted = sum(tensor.nbytes for tensor in _distinct(weights))
    actual = sum(tensor.nbytes for tensor in _distinct(stored))
    return StructureProof(
        layers=tuple(proofs),
        predicted_bytes=predicted,
        stored_bytes=actual,
        file_bytes=file_bytes,
        weights_as_predicted=abs(actual - predicted) <= WEIGHT_SLACK * predicted + WEIGHT_ALLOWANCE,
        file_as_predicted=file_bytes <= (1 + FILE_SLACK) * predicted + FILE_ALLOWANCE,
    )


def _distinct(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    return list({(tensor.shape, tensor.digest): tensor for tensor in tensors}.values())


def _count(tensors: Iterable[StoredTensor]) -> Counter[tuple[int, ...]]:
    return Counter(_key(tensor.shape) for tensor in _distinct(tensors))


def _key(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(int(size) for size in shape))
