"""First and second moments of the outputs of a kernel, and the merging of batches.

The best low-rank kernel K P Qt needs no moments of the inputs, m x m (see ``truncation``), and so a
convolution needs no patches.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""A float64 array of any shape; ``exporter.data.Array`` has any element type."""

GRADIENT_RIDGE = 0.1
"""Ridge of all directions of the output, as a part of the mean squared gradient."""


@dataclass(frozen=True)
class Fisher:
    """The second moment of the loss gradient at a kernel's outputs, g x n x n, weighs errors."""

    matrix: Floats

    @cached_property
    def ridged(self) -> Floats:
        """The matrix and a ridge, g x n x n."""
        size = self.matrix.shape[-1]
        means = np.trace(self.matrix, axis1=1, axis2=2) / size
        # Where the loss does not depend on any output, all have the same weight.
        ridges = np.where(means > 0, GRADIENT_RIDGE * means, 1.0)
        return np.asarray(self.matrix + ridges[:, np.newaxis, np.newaxis] * np.eye(size))

    @cached_property
    def root(self) -> Floats:
        """Lower triangular L with ``L Lt = ridged``; g x n x n."""
        return np.asarray(np.linalg.cholesky(self.ridged), dtype=np.float64)


@dataclass(frozen=True)
class Moments:
    """The moments of a kernel's outputs, before any bias, for g groups of n outputs.

    Attributes:
        mean: Mean of the outputs ``y`` in the original model, g x n.
        scatter: Covariance of ``y``, g x n x n.
        fisher: Weights of the errors of ``y``; None weighs all outputs alike.
        compressed_mean: Mean of ``z``, the outputs with the layers before the kernel compressed;
            None if no layer is.
        compressed_scatter: Covariance of ``z``, or None.
        cross: Covariance of ``z`` and ``y``, rows for ``z``, or None.
        folds: The moments of two parts of the data, to fit on one and judge on the other; None if
            there are too few data.
    """

    mean: Floats
    scatter: Floats
    fisher: Fisher | None = None
    compressed_mean: Floats | None = None
    compressed_scatter: Floats | None = None
    cross: Floats | None = None
    folds: "tuple[Moments, Moments] | None" = None

    def energy(self, group: int) -> float:
        """Returns the (weighted) squared deviation of ``y`` from its mean in a group."""
        scatter = self.scatter[group]
        if self.fisher is None:
            return float(np.trace(scatter))
        return float(np.vdot(self.fisher.ridged[group], scatter))

    def error(self, p: Floats, q: Floats, group: int) -> float:
        """Returns the (weighted) squared error of ``q pt z`` for ``y``, with the means corrected.

        Both p and q are n x r.
        """
        scatter = self.scatter if self.compressed_scatter is None else self.compressed_scatter
        cross = self.scatter if self.cross is None else self.cross
        weighted = q if self.fisher is None else self.fisher.ridged[group] @ q
        agreement = np.vdot(weighted, cross[group].T @ p)
        given = np.vdot(p.T @ scatter[group] @ p, q.T @ weighted)
        return float(self.energy(group) + given - 2 * agreement)


class Accumulator:
    """Means and covariance of ``count`` pairs of vectors that arrive in batches, in float64.

    Deviations are taken from the means of the first batch, so that the sums of their products do
    not cancel where the means are large.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origins: tuple[Any, ...] = ()
        self._sums: Any = 0.0
        self._products: Any = 0.0

    def add(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Adds a batch of pairs, rows x g x n each; both may be the same array."""
        if not self.count:
            _, groups, n = left.shape
            self._origins = left.mean(axis=0), right.mean(axis=0)
            self._sums, self._products = np.zeros((2, groups, n)), np.zeros((groups, n, n))
        a = left - self._origins[0]
        # BLAS takes half the time for the product of an array with itself.
        b = a if right is left else right - self._origins[1]
        self.count += len(left)
        self._sums += [part.sum(axis=0, dtype=np.float64) for part in (a, b)]
        self._products += np.matmul(a.transpose(1, 2, 0), b.transpose(1, 0, 2))

    def merged(self, other: "Accumulator") -> "Accumulator":
        """Returns the moments of both together (Chan, Golub and LeVeque, 1983)."""
        if not (self.count and other.count):
            return self if self.count else other
        both = Accumulator()
        both.count = self.count + other.count
        left, right = (y - x for x, y in zip(self._means, other._means, strict=True))
        part = other.count / both.count
        both._origins = self._means[0] + part * left, self._means[1] + part * right
        between = left[..., :, np.newaxis] * right[..., np.newaxis, :]
        both._products = self._scatter + other._scatter + between * (self.count * part)
        return both

    @property
    def _means(self) -> tuple[Floats, ...]:
        shifts = np.broadcast_to(self._sums, (2, *np.shape(self._origins[0]))) / self.count
        return tuple(origin + shift for origin, shift in zip(self._origins, shifts, strict=True))

    @property
    def _scatter(self) -> Floats:
        """The sum of the outer products of the deviations from the means."""
        left, right = np.broadcast_to(self._sums, (2, *np.shape(self._origins[0])))
        shift: Floats = left[..., :, np.newaxis] * right[..., np.newaxis, :] / self.count
        return np.asarray(self._products - shift, dtype=np.float64)

    @property
    def mean(self) -> Floats:
        """The mean of the left vectors, g x n."""
        return self._means[0]

    @property
    def covariance(self) -> Floats:
        """The covariance, g x n x n, of the pairs as a population."""
        return self._scatter / self.count

    @property
    def about_zero(self) -> Floats:
        """The mean of the outer products themselves, g x n x n."""
        left, right = self._means
        return self.covariance + left[..., :, np.newaxis] * right[..., np.newaxis, :]
