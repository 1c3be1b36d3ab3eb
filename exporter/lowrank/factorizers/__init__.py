"""The table of factorizers, which replace a layer by thin factors: one row for each kind."""

import functools
from typing import Any

from exporter import plugins
from exporter.graph.layers import kind_of
from exporter.lowrank.factorizers.attention import AttentionFactorizer
from exporter.lowrank.factorizers.base import Convolution, Factorizer
from exporter.lowrank.factorizers.convolution import (
    ConvolutionFactorizer,
    SeparableFactorizer,
    TransposedFactorizer,
)
from exporter.lowrank.factorizers.dense import DenseFactorizer
from exporter.lowrank.factorizers.einsum import EinsumDenseFactorizer
from exporter.lowrank.factorizers.embedding import (
    EmbeddingFactorizer,
    ReversibleEmbeddingFactorizer,
)
from exporter.lowrank.factorizers.recurrent import RecurrentFactorizer
from exporter.lowrank.factorizers.spatial import SpatialFactorizer
from exporter.lowrank.factorizers.tucker import TuckerFactorizer

__all__ = [
    "FACTORIZERS",
    "Convolution",
    "Factorizer",
    "factorizer_for",
    "factorizers",
    "reason_kept",
]

FACTORIZERS: tuple[Factorizer, ...] = (
    DenseFactorizer("Dense"),
    SpatialFactorizer("Conv2D"),
    TuckerFactorizer("Conv2D"),
    ConvolutionFactorizer("Conv1D"),
    ConvolutionFactorizer("Conv2D"),
    ConvolutionFactorizer("Conv3D"),
    TransposedFactorizer("Conv1DTranspose"),
    TransposedFactorizer("Conv2DTranspose"),
    TransposedFactorizer("Conv3DTranspose"),
    SeparableFactorizer("SeparableConv1D"),
    SeparableFactorizer("SeparableConv2D"),
    EinsumDenseFactorizer("EinsumDense"),
    AttentionFactorizer("MultiHeadAttention"),
    EmbeddingFactorizer("Embedding"),
    ReversibleEmbeddingFactorizer("ReversibleEmbedding"),
    RecurrentFactorizer("LSTM"),
    RecurrentFactorizer("GRU"),
)
"""The first row that supports a layer counts, so the special ones come before the general ones."""


def factorizer_for(layer: Any, convolution: str = "channel") -> Factorizer | None:
    """Returns the row of the table that supports the layer; None if there is none.

    Args:
        layer: A built layer.
        convolution: A ``Convolution``; layers that it does not suit are factorized by channel.
    """
    return next((f for f in _rows(convolution) if f.supports(layer)), None)


def reason_kept(layer: Any) -> str:
    """Says why a layer that no row supports stays as it is."""
    obstacles = [f.obstacle(layer) for f in _rows("channel") if f.matches(layer)]
    return next(iter(obstacles), kind_of(layer).kept or "this kind is not factorized")


@functools.cache
def factorizers() -> tuple[Factorizer, ...]:
    """Returns the rows of the table, and after them those of other packages.

    Raises:
        PluginError: If a row of another package cannot be used.
    """
    table = {(row.kind, row.convolution): row for row in FACTORIZERS}

    def add(found: Any) -> None:
        if not isinstance(found, Factorizer):
            raise TypeError(f"it is no exporter.Factorizer, but {type(found).__name__}")
        key = found.kind, found.convolution
        plugins.require_new(f"the layer kind {found.kind!r}", table.get(key))
        table[key] = found

    plugins.extend(plugins.FACTORIZERS, add)
    plugins.check(plugins.FACTORIZERS)
    return tuple(table.values())


def _rows(convolution: str) -> list[Factorizer]:
    return [f for f in factorizers() if f.convolution in {None, "channel", convolution}]
