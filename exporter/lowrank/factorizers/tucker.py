"""Conv2D by 1 x 1, k x k and 1 x 1: the partial Tucker decomposition over channels and filters.

A kernel K of k x k x c x n is approximated by a core of k x k x r1 x r2 with orthonormal A (c x r1)
and B (n x r2) along its channels (Kim et al., 2016). The truncated higher-order SVD (De Lathauwer
et al., 2000) is improved by orthogonal iteration.
"""

import functools
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from exporter.errors import RecipeError
from exporter.graph.layers import input_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import head_names
from exporter.lowrank.factorizers.convolution import (
    LINEAR,
    ConvolutionFactorizer,
    convolve,
    pointwise,
    spatial_sizes,
)
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix
from exporter.lowrank.linalg.moments import Floats, Moments
from exporter.lowrank.linalg.svd import leading_eigenpairs
from exporter.lowrank.linalg.truncation import Truncation

MAX_ITERATIONS = 10
LEAST_GAIN = 1e-3
"""An iteration that lowers the squared error by less than this part is the last one."""


class TuckerFactorizer(ConvolutionFactorizer):
    """``Conv2D(n, k)`` becomes ``Conv2D(r1, 1)``, ``Conv2D(r2, k)`` and ``Conv2D(n, 1)``.

    The rank is r2; r1 is the same part of the input channels. There is no S to be merged.
    """

    convolution = "tucker2"

    def __init__(self) -> None:
        super().__init__("Conv2D")

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.groups > 1 or layer.kernel_size == (1, 1):
            return "has groups, or a kernel of 1 x 1"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        height, width, channels, filters = layer.kernel.shape
        return (
            TuckerKernel(
                m=height * width * channels,
                n=filters,
                read=one_matrix,
                **self.common(layer, layer.kernel, functools.partial(convolve, layer)),
                channels=channels,
                input_positions=count_positions(spatial_sizes(layer, input_shape(layer))),
            ),
        )

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        first, core, last = truncation.matrices
        names = head_names(layer.name, 2)
        head = pointwise(layer, first, name=names[0], **LINEAR)
        middle = rebuild(
            layer,
            head.compute_output_shape(input_shape(layer)),
            [core.reshape(*layer.kernel_size, first.shape[2], -1)],
            name=names[1],
            filters=core.shape[2],
            kernel_constraint=None,
            **LINEAR,
        )
        layers = (head, middle, pointwise(layer, last, truncation))
        return Replacement(layers, {"": tuple(part.kernel for part in layers)})


@dataclass(frozen=True)
class TuckerKernel(Kernel):
    """Three factors: c x r1, the core as (k * k * r1) x r2, and r2 x n.

    Attributes:
        channels: Of the input, c.
        input_positions: How often the first factor is applied in one call on one sample.
    """

    channels: int = 1
    input_positions: int = 1

    data_aware: ClassVar[bool] = False

    @property
    def break_even_rank(self) -> float:
        """Where the parameters, drawn as straight lines between ranks, equal those of the layer."""
        dense = self.params(None)
        above = bisect_left(range(self.full_rank + 1), dense, key=self._params_or_none)
        low, high = self._params_or_none(above - 1), self.params(above)
        return above - 1 + (dense - low) / (high - low)

    def _params_or_none(self, rank: int) -> int:
        return self.params(rank) if rank else self.other_params

    def input_rank(self, rank: int) -> int:
        """Returns r1: the same part of what is possible as r2, but no more than the core can use.

        Args:
            rank: r2.
        """
        proportional = -(-rank * self.channels // self.full_rank)
        return min(proportional, self._taps * rank)

    @property
    def _taps(self) -> int:
        return self.m // self.channels

    def macs(self, rank: int | None, *, merge: bool = True) -> int:
        """See the base class."""
        if rank is None:
            return super().macs(rank, merge=merge)
        head = self.channels * self.input_rank(rank)
        return self.input_positions * head + self.positions * (self._elements(rank, merge) - head)

    def _elements(self, rank: int | None, merge: bool) -> int:
        if rank is None:
            return self.m * self.n
        return sum(a * b for _, a, b in self.factor_shapes(rank, merge=merge))

    def factor_shapes(self, rank: int, *, merge: bool = True) -> tuple[tuple[int, ...], ...]:
        """See the base class."""
        del merge
        inner = self.input_rank(rank)
        return (1, self.channels, inner), (1, self._taps * inner, rank), (1, rank, self.n)

    def truncate(
        self, rank: int, moments: Moments | None = None, *, merge: bool = True
    ) -> Truncation:
        """See the base class; moments and merge make no difference."""
        del moments, merge
        if not 1 <= rank <= self.full_rank:
            raise RecipeError(f"Rank must be within 1 and {self.full_rank}. Received: {rank}.")
        tensor, inner = self._tensor(), self.input_rank(rank)
        total, kept = float(np.vdot(tensor, tensor)), 0.0
        _, b = leading_eigenpairs(_gram(tensor, 2), rank)
        for _ in range(MAX_ITERATIONS):
            _, a = leading_eigenpairs(_gram(tensor @ b, 1), inner)
            reduced = a.T @ tensor
            values, b = leading_eigenpairs(_gram(reduced, 2), rank)
            before, kept = kept, float(values.sum())
            if kept - before <= LEAST_GAIN * (total - kept):
                break
        core = (reduced @ b).reshape(-1, rank)
        energy = float(np.clip(1 - kept / total, 0, 1)) if total else 0.0
        return Truncation((a[None], core[None], b.T[None]), None, energy)

    def error_curve(self, moments: Moments | None = None) -> Floats:
        """See the base class; these are the errors of the higher-order SVD, a little too large."""
        del moments
        tensor = self._tensor()
        _, a = leading_eigenpairs(_gram(tensor, 1), self.channels)
        _, b = leading_eigenpairs(_gram(tensor, 2), self.n)
        core = a.T @ tensor @ b
        # Truncations of it are projections, so that squares add up.
        kept = np.cumsum(np.cumsum(np.sum(core**2, axis=0), axis=0), axis=1)
        ranks = range(1, self.full_rank)
        inner = [kept[self.input_rank(rank) - 1, rank - 1] for rank in ranks]
        total = float(np.vdot(tensor, tensor))
        return np.array([total, *(max(0.0, total - value) for value in inner), 0.0])

    def _tensor(self) -> Floats:
        tensor: Floats = self.matrices().reshape(self._taps, self.channels, self.n)
        return tensor


def _gram(tensor: Floats, axis: int) -> Floats:
    """Returns the products of all pairs of slices along an axis."""
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    gram: Floats = unfolded @ unfolded.T
    return gram
