"""Conv2D by 1 x 1, k x k and 1 x 1: the partial Tucker decomposition over channels and filters.

A kernel K of k x k x c x n is approximated by a core of k x k x r1 x r2 with orthonormal A (c x r1)
and B (n x r2) along its channels (Kim et al., 2016). The truncated higher-order SVD (De Lathauwer
et al., 2000) is improved by orthogonal iteration.
"""

from bisect import bisect_left
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from exporter.errors import RecipeError
from exporter.graph.layers import input_shape, rebuild
from exporter.lowrank.factorizers.base import LINEAR, Shape
from exporter.lowrank.factorizers.convolution import ConvolutionFactorizer, pointwise, positions
from exporter.lowrank.kernels import Kernel, one_matrix
from exporter.lowrank.linalg.moments import Floats, Moments
from exporter.lowrank.linalg.svd import leading_eigenpairs
from exporter.lowrank.linalg.truncation import Truncation

MAX_ITERATIONS = 10
LEAST_GAIN = 1e-3
"""Iteration stops when the squared error falls by less than this part."""


class TuckerFactorizer(ConvolutionFactorizer):
    """``Conv2D(n, k)`` becomes ``Conv2D(r1, 1)``, ``Conv2D(r2, k)`` and ``Conv2D(n, 1)``.

    The rank is r2; r1 is the same part of the input channels. There is no S to be merged.
    """

    convolution = "tucker2"

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.groups > 1 or layer.kernel_size == (1, 1):
            return "has groups, or a kernel of 1 x 1"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        *window, channels, filters = layer.kernel.shape
        common = self.common(layer)
        after = common["positions"]
        kernel = TuckerKernel(
            m=prod(window) * channels,
            n=filters,
            read=one_matrix,
            **common,
            applied=(after, positions(layer, input_shape(layer)), after, after),
            data_aware=False,
            channels=channels,
        )
        return (kernel,)

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        return pointwise(layer, matrices, name=name, **LINEAR)

    def middle(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """Builds the layer of the core."""
        rank = matrices.shape[2]
        weights = [matrices.reshape(*layer.kernel_size, -1, rank)]
        changes = LINEAR | {"filters": rank, "kernel_constraint": None}
        return rebuild(layer, shape, weights, name=name, **changes)


@dataclass(frozen=True, kw_only=True)
class TuckerKernel(Kernel):
    """Three factors: c x r1, the core as (k * k * r1) x r2, and r2 x n.

    Attributes:
        channels: Channels of the input, c.
    """

    channels: int

    @property
    def break_even_rank(self) -> float:
        """The rank of as many parameters as the layer has, interpolated between whole ranks."""
        dense = self.params(None)
        above = bisect_left(range(self.full_rank + 1), dense, key=self._params_or_none)
        low, high = self._params_or_none(above - 1), self.params(above)
        return above - 1 + (dense - low) / (high - low)

    def _params_or_none(self, rank: int) -> int:
        return self.params(rank) if rank else self.other_params

    def input_rank(self, rank: int) -> int:
        """Returns r1 for a rank r2: the same part of its range, but no more than the core uses."""
        proportional = -(-rank * self.channels // self.full_rank)
        return min(proportional, self._taps * rank)

    @property
    def _taps(self) -> int:
        return self.m // self.channels

    def factor_shapes(self, rank: int, *, merge: bool = True) -> tuple[tuple[int, ...], ...]:
        """See the base class."""
        inner = self.input_rank(rank)
        return (1, self.channels, inner), (1, self._taps * inner, rank), (1, rank, self.n)

    def truncate(
        self, rank: int, moments: Moments | None = None, *, merge: bool = True
    ) -> Truncation:
        """See the base class; moments and merge make no difference."""
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
        """See the base class; returns the errors of the higher-order SVD, a little too large."""
        tensor = self._tensor()
        _, a = leading_eigenpairs(_gram(tensor, 1), self.channels)
        _, b = leading_eigenpairs(_gram(tensor, 2), self.n)
        core = a.T @ tensor @ b
        # Truncations of the core are projections, so that squares add up.
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
