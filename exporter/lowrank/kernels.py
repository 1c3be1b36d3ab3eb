"""Kernels: the linear maps within layers, which are what is factorized."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from exporter.errors import ModelError
from exporter.graph.hooks import Place
from exporter.graph.signature import FREE_SIZE
from exporter.graph.types import Layer, Tensor, Variable
from exporter.lowrank.linalg.moments import Floats, Moments
from exporter.lowrank.linalg.truncation import Truncation, error_curve, truncate


@dataclass(frozen=True)
class Kernel:
    """A linear map of a layer, as a stack of matrices of the same shape and rank.

    Most layers have one; an attention layer has four. Costs are those of two factors, m x r and
    r x n; kinds that are cut differently override them.

    Attributes:
        name: Within its layer; empty if it is the only one.
        m: Inputs of each matrix: for a convolution, the elements of a patch.
        n: Outputs of each matrix.
        layer: The layer that is called with the inputs of the map: the layer itself, or one that
            it is made of.
        variable: The weight that holds the map.
        read: Turns the array of the weight into g x m x n matrices.
        outputs: Applies the map alone, without bias: from a TensorFlow tensor of inputs to one of
            rows x g x n.
        positions: How often the map is applied in one call on one sample; free sizes count as
            ``FREE_SIZE``.
        groups: How many matrices, g.
        has_bias: Whether a bias of the layer follows the map at once, so that errors of the mean
            can be put right.
        other_params: Parameters of the layer that stay: biases, recurrent kernels.
        looked_up: Whether the inputs are indices, so that the full map costs no multiplication.
        gradient_at: Where the loss gradient at the outputs can be read: what the layer hands to
            its ``activation`` (the bias does not change it), what it returns, or nowhere.
    """

    name: str
    m: int
    n: int
    layer: Layer
    variable: Variable
    read: Callable[[Any], Any]
    outputs: Callable[[Tensor], Tensor]
    positions: int
    groups: int = 1
    has_bias: bool = True
    other_params: int = 0
    looked_up: bool = False
    gradient_at: Place | None = "activation"

    data_aware: ClassVar[bool] = True
    """Whether ``truncate`` makes use of moments."""

    @property
    def full_rank(self) -> int:
        """min(m, n), at which nothing is discarded."""
        return min(self.m, self.n)

    @property
    def break_even_rank(self) -> float:
        """Mn / (m + n): from this rank on the factors are no smaller than the matrix."""
        return self.m * self.n / (self.m + self.n)

    def params(self, rank: int | None, *, merge: bool = True) -> int:
        """Counts the parameters at a rank, biases included; None is the layer as it is."""
        return self.other_params + self._elements(rank, merge)

    def macs(self, rank: int | None, *, merge: bool = True) -> int:
        """Counts the multiply-accumulates of one call on one sample at a rank."""
        elements = self._elements(rank, merge)
        if self.looked_up:
            elements = 0 if rank is None else elements - self.groups * self.m * rank
        return self.positions * elements

    def _elements(self, rank: int | None, merge: bool) -> int:
        if rank is None:
            return self.groups * self.m * self.n
        return self.groups * (rank * (self.m + self.n) + (0 if merge else rank**2))

    def factor_shapes(self, rank: int, *, merge: bool = True) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the matrices that ``truncate`` returns."""
        g, middle = self.groups, () if merge else ((self.groups, rank, rank),)
        return (g, self.m, rank), *middle, (g, rank, self.n)

    def matrices(self, *, precise: bool = True) -> Floats:
        """Returns the map as g x m x n.

        Args:
            precise: Whether in float64; False leaves float32 as it is, which saves two thirds of
                the memory that a large kernel takes here.

        Raises:
            ModelError: If an element is not finite.
        """
        array = self.variable.numpy()
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise ModelError(
                f"The kernel of layer {self.layer.name!r} must be finite. Received: {bad} NaN or "
                f"infinite elements of {array.size}. The model may have diverged while it was "
                "trained."
            )
        if precise or array.dtype != np.float32:
            array = array.astype(np.float64)
        matrices: Floats = self.read(array)
        return matrices

    def truncate(
        self, rank: int, moments: Moments | None = None, *, merge: bool = True
    ) -> Truncation:
        """Returns the factors.

        Args:
            rank: Between 1 and ``full_rank``.
            moments: Of the outputs; None truncates by the weights alone.
            merge: Whether S is merged into U.

        Raises:
            RecipeError: If the rank is out of its range.
            ModelError: If the kernel is not finite.
        """
        # The SVD changes over to float64 by itself, where it has to.
        matrices = self.matrices(precise=moments is not None)
        return truncate(matrices, rank, moments, merge=merge)

    def error_curve(self, moments: Moments | None = None) -> Floats:
        """Returns the squared error at every rank from 0 to ``full_rank``.

        Args:
            moments: Of the outputs; None gives errors of the weights.
        """
        return error_curve(self.matrices(), moments)


def times(inputs: Tensor, matrix: Any) -> Tensor:
    """Multiplies the last axis of a tensor by a matrix, m x n; returns rows x 1 x n."""
    import tensorflow as tf

    m, n = matrix.shape
    product = tf.reshape(inputs, (-1, m)) @ tf.cast(matrix, inputs.dtype)
    # The gradient of a reshape is free, that of a new axis makes a copy.
    return tf.reshape(product, (-1, 1, n))


def one_matrix(array: Any) -> Any:
    """Reads a kernel whose last axis is its output, the others its inputs."""
    return array.reshape(1, -1, array.shape[-1])


def count_positions(shape: tuple[int | None, ...]) -> int:
    """Multiplies sizes, free ones taken as ``FREE_SIZE``."""
    return math.prod(size or FREE_SIZE for size in shape)
