"""Kernels: the linear maps within layers that are factorized."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from exporter.errors import ModelError
from exporter.graph.hooks import Place
from exporter.graph.signature import FREE_SIZE
from exporter.graph.types import Layer, Tensor, Variable
from exporter.lowrank.linalg.moments import Floats, Moments
from exporter.lowrank.linalg.truncation import Truncation, error_curve, truncate


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A linear map of a layer, as a stack of matrices of the same shape and rank.

    Most layers have one; an attention layer has four. It is replaced by two factors, m x r and
    r x n; kinds that are factorized differently override the methods.

    Attributes:
        name: Name within its layer; empty if it is the only one.
        m: Inputs of each matrix: for a convolution, the elements of a patch.
        n: Outputs of each matrix.
        layer: The layer that is called with the inputs of the map: the layer itself, or a part.
        variable: The weight that holds the map.
        read: Turns the array of the weight into g x m x n matrices.
        outputs: Applies the map without bias to a tensor of inputs; returns rows x g x n.
        positions: How often the map is applied in one call on one sample.
        applied: How often the map, the first factor, S and the last factor are multiplied in one
            call on one sample; None if each is multiplied ``positions`` times.
        groups: Number of matrices, g.
        has_bias: Whether a bias follows the map directly, and can correct the error of the mean.
        latent_bias: Whether the first factor gets a bias of r elements.
        gradient_at: Where the loss gradient at the outputs can be read: at the input of the layer's
            ``activation`` (the bias does not change it), at its output, or nowhere.
        data_aware: Whether ``truncate`` uses moments.
    """

    name: str = ""
    m: int
    n: int
    layer: Layer
    variable: Variable
    read: Callable[[Any], Any]
    outputs: Callable[[Tensor], Tensor]
    positions: int
    applied: tuple[int, int, int, int] | None = None
    groups: int = 1
    has_bias: bool = True
    latent_bias: bool = False
    gradient_at: Place | None = "activation"
    data_aware: bool = True

    @property
    def full_rank(self) -> int:
        """min(m, n), at which nothing is discarded."""
        return min(self.m, self.n)

    @property
    def break_even_rank(self) -> float:
        """The rank mn / (m + n), from which on the factors are no smaller than the matrix."""
        return self.m * self.n / (self.m + self.n + self.latent_bias)

    @cached_property
    def other_params(self) -> int:
        """Parameters of the layer that stay: biases, recurrent and depthwise kernels."""
        return int(self.layer.count_params()) - self.groups * self.m * self.n

    def rows_of(self, tensors: Sequence[Tensor], *, biased: bool = False) -> Tensor:
        """Joins tensors of the size of the outputs, at ``gradient_at``, to rows x g x n.

        Where they are ``biased``, a bias that the layer has added is taken away.
        """
        import tensorflow as tf

        bias = getattr(self.layer, "bias", None) if self.gradient_at == "activation" else None
        given = [tf.cast(tensor, tf.float32) for tensor in tensors]
        if biased and bias is not None:
            given = [tensor - tf.cast(bias, tf.float32) for tensor in given]
        shape = (-1, self.groups, self.n)
        return tf.concat([tf.reshape(tensor, shape) for tensor in given], axis=0)

    def params(self, rank: int | None, *, merge: bool = True) -> int:
        """Counts the parameters at a rank, biases included; None is the layer as it is."""
        bias = self.latent_bias * (rank or 0)
        return self.other_params + bias + sum(map(math.prod, self._shapes(rank, merge)))

    def macs(self, rank: int | None, *, merge: bool = True) -> int:
        """Counts the multiply-accumulates of one call on one sample at a rank."""
        shapes = self._shapes(rank, merge)
        full, *counts = self.applied or 4 * (self.positions,)
        if rank is None:
            counts = [full]
        elif len(shapes) == 2:
            counts = counts[::2]  # There is no S.
        return sum(count * math.prod(each) for count, each in zip(counts, shapes, strict=True))

    def _shapes(self, rank: int | None, merge: bool) -> tuple[tuple[int, ...], ...]:
        if rank is None:
            return ((self.groups, self.m, self.n),)
        return self.factor_shapes(rank, merge=merge)

    def factor_shapes(self, rank: int, *, merge: bool = True) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the matrices that ``truncate`` returns."""
        g, middle = self.groups, () if merge else ((self.groups, rank, rank),)
        return (g, self.m, rank), *middle, (g, rank, self.n)

    def matrices(self, *, precise: bool = True) -> Floats:
        """Returns the map as g x m x n; raises ModelError if an element is not finite.

        Args:
            precise: Whether to convert to float64. Float32 takes a third of the memory here.
        """
        array = self.variable.numpy()
        bad = array.size - np.count_nonzero(np.isfinite(array))
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
            moments: Moments of the outputs; None truncates by the weights alone.
            merge: Whether S is merged into U.

        Raises:
            RecipeError: If the rank is out of its range.
            ModelError: If the kernel is not finite.
        """
        # The SVD converts to float64 by itself where it has to.
        return truncate(self.matrices(precise=moments is not None), rank, moments, merge=merge)

    def error_curve(self, moments: Moments | None = None) -> Floats:
        """Returns the squared error at every rank, 0 to ``full_rank``; see ``truncation``."""
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
    """Multiplies sizes; a free one counts as ``FREE_SIZE``."""
    return math.prod(size or FREE_SIZE for size in shape)
