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

ROWS_AT_ONCE = 4
"""Rows that are multiplied at once, for each output; they take as much memory as the products."""


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
    """Means and covariance of pairs of vectors that arrive in batches, in float64.

    Deviations are taken from the means of the first batch, so that sums of their products do not
    cancel where the means are large. Small batches wait for others: products of many rows take less
    time, as they have to be added in float64.
    """

    def __init__(self) -> None:
        self._count = 0
        self._origins: tuple[Any, ...] = ()
        self._sums: Any = 0.0
        self._products: Any = 0.0
        self._waiting: list[tuple[NDArray[Any], ...]] = []

    @property
    def count(self) -> int:
        """The number of pairs."""
        return self._count + sum(len(left) for left, _ in self._waiting)

    def add(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Adds a batch of pairs, rows x g x n each; both may be the same array."""
        self._waiting.append((left, right))
        if self.count - self._count >= ROWS_AT_ONCE * left.shape[-1]:
            self._sum_up()

    def _sum_up(self) -> None:
        if not self._waiting:
            return
        lefts, rights = zip(*self._waiting, strict=True)
        same = all(right is left for left, right in self._waiting)
        if not self._count:
            self._origins = lefts[0].mean(axis=0), rights[0].mean(axis=0)
            self._sums = np.zeros((2, *lefts[0].shape[1:]))
            self._products = np.zeros((*lefts[0].shape[1:], lefts[0].shape[-1]))
        self._waiting = []
        a = np.concatenate(lefts) - self._origins[0]
        # BLAS takes half the time for the product of an array with itself.
        b = a if same else np.concatenate(rights) - self._origins[1]
        self._count += len(a)
        self._sums += [part.sum(axis=0, dtype=np.float64) for part in (a, b)]
        self._products += np.matmul(a.transpose(1, 2, 0), b.transpose(1, 0, 2))

    def merged(self, other: "Accumulator") -> "Accumulator":
        """Returns the moments of both together (Chan, Golub and LeVeque, 1983)."""
        if not (self.count and other.count):
            return self if self.count else other
        both, part = Accumulator(), other.count / (self.count + other.count)
        both._count = self.count + other.count
        shifts = [y - x for x, y in zip(self._means, other._means, strict=True)]
        both._origins = tuple(x + part * y for x, y in zip(self._means, shifts, strict=True))
        both._sums = np.zeros_like(shifts)
        both._products = self._scatter + other._scatter + self.count * part * _outer(*shifts)
        return both

    @property
    def _means(self) -> tuple[Floats, ...]:
        self._sum_up()
        return tuple(x + y for x, y in zip(self._origins, self._sums / self._count, strict=True))

    @property
    def _scatter(self) -> Floats:
        """The sum of the outer products of the deviations from the means."""
        self._sum_up()
        scatter: Floats = self._products - _outer(*self._sums) / self._count
        return scatter

    @property
    def mean(self) -> Floats:
        """The mean of the left vectors, g x n."""
        return self._means[0]

    @property
    def covariance(self) -> Floats:
        """The covariance, g x n x n, of the pairs as a population."""
        return self._scatter / self._count

    @property
    def about_zero(self) -> Floats:
        """The mean of the outer products themselves, g x n x n."""
        return self.covariance + _outer(*self._means)


def _outer(left: Floats, right: Floats) -> Floats:
    return np.asarray(left[..., :, np.newaxis] * right[..., np.newaxis, :])
