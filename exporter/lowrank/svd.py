"""Truncated singular value decompositions.

A kernel K of shape m x n (inputs x outputs) is approximated by U diag(s) Vt of rank r. The
truncated SVD is the best such approximation in the Frobenius norm, and the squared error is the sum
of the squared singular values left out (Eckart and Young, 1936).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ModelError, RecipeError

EXACT_LIMIT = 768
"""Smaller side up to which LAPACK is quick enough, and exact."""

OVERSAMPLING = 16
MAX_ITERATIONS = 32

LEAST_GAIN = 2e-4
"""An iteration that lowers the squared error by less than this part is the last one.

On noise, the slowest case, the error is then within 1.0006 of the optimum; the kernels of trained
models decay faster and need a few iterations alone.
"""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class TruncatedSVD:
    """The leading singular triplets of a matrix, in float64.

    Attributes:
        u: Left singular vectors, m x r, orthonormal columns.
        s: Singular values, r of them, from the largest down.
        vt: Right singular vectors, r x n, orthonormal rows.
        discarded_energy: The part of the squared Frobenius norm left out, 0 to 1.
    """

    u: Matrix
    s: Matrix
    vt: Matrix
    discarded_energy: float

    @property
    def relative_error(self) -> float:
        """``||K - U diag(s) Vt||_F / ||K||_F``, by Eckart and Young."""
        return float(np.sqrt(self.discarded_energy))


def truncated_svd(matrix: NDArray[Any], rank: int, *, seed: int = 0) -> TruncatedSVD:
    """Returns the leading ``rank`` singular triplets.

    Exact by LAPACK where the smaller side is at most ``EXACT_LIMIT`` or the rank is a large part of
    it; otherwise by randomized subspace iteration (Halko, Martinsson and Tropp, 2011, algorithms
    4.4 and 5.1), whose error with these settings is within 1.001 of the optimum.

    Args:
        matrix: m x n, any float dtype; computed in float64.
        rank: Between 1 and min(m, n).
        seed: Of the random test matrix; the result is deterministic.

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the matrix has an element that is not finite.
    """
    full = np.asarray(matrix, dtype=np.float64)
    _check(full, rank)
    if _is_small(full, rank):
        u, s, vt = np.linalg.svd(full, full_matrices=False)
    else:
        u, s, vt = _randomized(full, rank, seed)
    u, vt = _fix_signs(u[:, :rank], vt[:rank])
    s = s[:rank]
    total = float(np.vdot(full, full))
    # Subtraction cancels where little is left out; the clip keeps the result a fraction.
    energy = float(np.clip(1.0 - np.vdot(s, s) / total, 0.0, 1.0)) if total else 0.0
    return TruncatedSVD(u, s, vt, energy)


def leading_eigenpairs(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Returns the largest eigenvalues, from the largest down, and their vectors, n x r.

    Args:
        matrix: n x n, symmetric, positive semidefinite up to rounding.
        rank: Between 1 and n.

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the matrix has an element that is not finite.
    """
    if _is_small(matrix, rank):
        _check(matrix, rank)
        values, vectors = np.linalg.eigh(matrix)
        return np.maximum(values[::-1][:rank], 0.0), vectors[:, ::-1][:, :rank]
    svd = truncated_svd(matrix, rank)
    return svd.s, svd.u


def singular_values(matrix: Matrix) -> Matrix:
    """Returns all singular values, from the largest down.

    Those of a large matrix are square roots of eigenvalues of its Gram matrix, which costs half of
    the digits of the smallest ones, and an order of magnitude less time.
    """
    m, n = matrix.shape
    if min(m, n) <= EXACT_LIMIT:
        values: Matrix = np.linalg.svd(matrix, compute_uv=False)
        return values
    gram = matrix.T @ matrix if n <= m else matrix @ matrix.T
    roots: Matrix = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return roots


def _is_small(matrix: Matrix, rank: int) -> bool:
    smaller: int = min(matrix.shape)
    return smaller <= EXACT_LIMIT or 4 * (rank + OVERSAMPLING) > smaller


def _check(matrix: Matrix, rank: int) -> None:
    smaller = min(matrix.shape)
    if not 1 <= rank <= smaller:
        raise RecipeError(
            f"Rank must be within 1 and {smaller} for a matrix of shape {matrix.shape}. "
            f"Received: {rank}."
        )
    if not np.isfinite(matrix).all():
        raise ModelError(f"A matrix of shape {matrix.shape} has NaN or infinite elements.")


def _randomized(matrix: Matrix, rank: int, seed: int) -> tuple[Matrix, Matrix, Matrix]:
    shape = matrix.shape[1], rank + OVERSAMPLING
    test = np.random.default_rng(seed).standard_normal(shape)
    basis, _ = np.linalg.qr(matrix @ test)
    total, captured = float(np.vdot(matrix, matrix)), 0.0
    for _ in range(MAX_ITERATIONS):
        cobasis, _ = np.linalg.qr(matrix.T @ basis)
        basis, triangle = np.linalg.qr(matrix @ cobasis)
        s = np.linalg.svd(triangle, compute_uv=False)[:rank]
        before, captured = captured, float(np.vdot(s, s))
        if captured - before <= LEAST_GAIN * (total - captured):
            break
    u, s, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, vt


def _fix_signs(u: Matrix, vt: Matrix) -> tuple[Matrix, Matrix]:
    """Makes the largest element of each left vector positive: u and v share a free sign."""
    largest = np.abs(u).argmax(axis=0)
    signs = np.where(u[largest, np.arange(u.shape[1])] < 0, -1.0, 1.0)
    return u * signs, vt * signs[:, np.newaxis]
