"""How a layer of each kind is replaced by thin factors: one class a kind, one row in the table."""

from typing import Any

from exporter.lowrank.factorizers.base import Factorizer, Replacement
from exporter.lowrank.factorizers.dense import DenseFactorizer

__all__ = ["FACTORIZERS", "Factorizer", "Replacement", "factorizer_for", "reason_kept"]

FACTORIZERS: tuple[Factorizer, ...] = (DenseFactorizer(),)


def factorizer_for(layer: Any) -> Factorizer | None:
    """Returns the row of the table that supports the layer; None if there is none."""
    return next((f for f in FACTORIZERS if f.supports(layer)), None)


def reason_kept(layer: Any) -> str:
    """Says why a layer that no row supports stays as it is."""
    return _REASONS.get(type(layer).__name__, "this kind is not factorized")


_NO_MATRIX = "has no matrix, only one factor a channel"
_REASONS = {
    "BatchNormalization": _NO_MATRIX,
    "LayerNormalization": _NO_MATRIX,
    "GroupNormalization": _NO_MATRIX,
    "PReLU": _NO_MATRIX,
    "DepthwiseConv1D": "each output takes one channel: nothing to factorize",
    "DepthwiseConv2D": "each output takes one channel: nothing to factorize",
}
