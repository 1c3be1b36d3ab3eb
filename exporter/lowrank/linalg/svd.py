"""Truncated singular value decompositions.

The truncated SVD U diag(s) Vt is the best approximation of rank r in the Frobenius norm. The
squared error is the sum of the squared singular values left out (Eckart and Young, 1936).

Large matrices go through a randomized block Krylov method (Musco and Musco, 2015): the matrix is
multiplied with a few dozen columns a few times, in float32 if that is precise enough.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ModelError, RecipeError

EXACT_LIMIT = 768
"""Smaller side up to which LAPACK is fast enough, and exact."""

OVERSAMPLING = 10
"""Columns of a block beyond the rank."""

LEAST_GAIN = 1.5e-3
"""The space is large enough if more of it would lower the squared error by this part at most.

An error within 1.001 of the optimum allows 2e-3.
"""

FLOAT32_LIMIT = 1e-4
"""Part of the squared norm left out below which float32 is too coarse."""

FLOAT64_LIMIT = 1e-12
"""Part of the squared norm left out below which float64 sums do not show how the error falls."""

BLIND_BLOCKS = 6
"""Number of blocks below ``FLOAT64_LIMIT``; noise, whose spectrum hardly decays, needs five."""

MAX_EXPONENT = 40
"""Matrices whose largest element is beyond 2^40 or 2^-40 are scaled: float32 would overflow."""

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


def truncated_svd(matrix: NDArray[Any], rank: int) -> TruncatedSVD:
    """Returns the leading ``rank`` singular triplets.

    LAPACK computes them exactly if the smaller side is at most ``EXACT_LIMIT`` or the rank is a
    large part of it; otherwise randomized block Krylov iteration (Musco and Musco, 2015, algorithm
    2) comes within 1.001 of the optimal error.

    Args:
        matrix: m x n, any float dtype.
        rank: Between 1 and min(m, n).

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the matrix has an element that is not finite.
    """
    if matrix.dtype != np.float32:
        matrix = np.asarray(matrix, dtype=np.float64)
    _check_rank(matrix, rank)
    scaled, exponent = _scaled(matrix)
    total = squared_norm(scaled)
    if _is_small(matrix.shape, rank):
        u, s, vt = np.linalg.svd(scaled.astype(np.float64, copy=False), full_matrices=False)
    elif matrix.shape[0] < matrix.shape[1]:
        v, s, ut = _randomized(scaled.T, rank, total)
        u, vt = ut.T, v.T
    else:
        u, s, vt = _randomized(scaled, rank, total)
    s = s[:rank]
    u, vt = _fix_signs(u[:, :rank], vt[:rank])
    # Subtraction cancels where little is left out; the clip keeps the result a fraction.
    energy = float(np.clip(1.0 - np.vdot(s, s) / total, 0.0, 1.0)) if total else 0.0
    return TruncatedSVD(u, np.ldexp(s, exponent), vt, energy)


def leading_eigenpairs(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Returns the largest eigenvalues, from the largest down, and their vectors, n x r.

    Args:
        matrix: n x n, symmetric, positive semidefinite up to rounding.
        rank: Between 1 and n.

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the matrix has an element that is not finite.
    """
    if not _is_small(matrix.shape, rank):
        svd = truncated_svd(matrix, rank)
        return svd.s, svd.u
    _check_rank(matrix, rank)
    _check_finite(matrix)
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1][:rank], 0.0), vectors[:, ::-1][:, :rank]


def leading_right_vectors(matrix: Matrix, rank: int) -> Matrix:
    """Returns the right singular vectors of the largest singular values, n x r.

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the matrix has an element that is not finite.
    """
    if _is_small(matrix.shape, rank):
        return leading_eigenpairs(matrix.T @ matrix, rank)[1]
    return truncated_svd(matrix, rank).vt.T


def singular_values(matrix: Matrix) -> Matrix:
    """Returns all singular values, from the largest down.

    For a large matrix they are square roots of eigenvalues of its Gram matrix: this takes a tenth
    of the time, and the smallest values lose half of their digits.
    """
    m, n = matrix.shape
    if min(m, n) <= EXACT_LIMIT:
        return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)
    gram = matrix.T @ matrix if n <= m else matrix @ matrix.T
    roots: Matrix = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return roots


def squared_norm(matrix: NDArray[Any]) -> float:
    """Returns the squared Frobenius norm, summed up in float64 without a copy."""
    return float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))


def _is_small(shape: tuple[int, ...], rank: int) -> bool:
    smaller = min(shape)
    return smaller <= EXACT_LIMIT or 4 * (rank + OVERSAMPLING) > smaller


def _check_rank(matrix: NDArray[Any], rank: int) -> None:
    smaller = min(matrix.shape)
    if not 1 <= rank <= smaller:
        raise RecipeError(
            f"Rank must be within 1 and {smaller} for a matrix of shape {matrix.shape}. "
            f"Received: {rank}."
        )


def _check_finite(matrix: NDArray[Any]) -> float:
    """Returns the largest magnitude; a maximum passes NaN on."""
    largest = float(max(matrix.max(), -matrix.min()))
    if not np.isfinite(largest):
        raise ModelError(f"A matrix of shape {matrix.shape} has NaN or infinite elements.")
    return largest


def _scaled(matrix: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Returns the matrix over a power of two, if squares of its elements could overflow."""
    _, exponent = np.frexp(_check_finite(matrix))
    if abs(exponent) <= MAX_EXPONENT:
        return matrix, 0
    return np.ldexp(matrix, -exponent), int(exponent)


def _randomized(matrix: NDArray[Any], rank: int, total: float) -> tuple[Matrix, Matrix, Matrix]:
    """Returns u, s, vt of a matrix with no more columns than rows."""
    space, left_out = _explore(matrix.astype(np.float32, copy=False), rank, total)
    if left_out <= FLOAT32_LIMIT * total:
        space, _ = _explore(matrix.astype(np.float64, copy=False), rank, total)
    basis, image = space.leading(rank)
    # QR restores the orthogonality that float32 lost.
    basis, triangle = np.linalg.qr(basis)
    image = np.linalg.solve(triangle.T, image.T).T
    u, s, rotation = np.linalg.svd(image, full_matrices=False)
    return u, s, rotation @ basis.T


def _explore(matrix: NDArray[Any], rank: int, total: float) -> tuple["_KrylovSpace", float]:
    """Grows a space until it holds the leading triplets, or its dtype is too coarse.

    Returns:
        The space, and the energy that it leaves out at the rank.
    """
    space = _KrylovSpace(matrix, rank + OVERSAMPLING)
    left_out, gain = total, 0.0
    while space.grow():
        before, left_out = left_out, total - space.captured(rank)
        former, gain = gain, before - left_out
        if left_out <= FLOAT32_LIMIT * total and matrix.dtype == np.float32:
            break
        if left_out <= FLOAT64_LIMIT * total:
            if len(space.blocks) >= BLIND_BLOCKS:
                break
            continue
        # The gains shrink like a geometric series, by a half or by the ratio of the last two.
        least = LEAST_GAIN * left_out
        if gain <= least and gain * gain <= least * (former - gain):
            break
    return space, left_out


class _KrylovSpace:
    """The span of ``At Y, (At A) At Y, ...`` for a random Y, in orthonormal blocks."""

    def __init__(self, matrix: NDArray[Any], width: int) -> None:
        shape = matrix.shape[0], width
        self._matrix = matrix
        self._next = np.random.default_rng(0).standard_normal(shape, matrix.dtype.type)
        self.blocks: list[NDArray[Any]] = []
        self._images: list[Matrix] = []
        self._gram: Matrix = np.empty((0, 0))
        self._floor = 16 * float(np.finfo(matrix.dtype).eps)

    def grow(self) -> bool:
        """Adds a block; returns whether there was one to add."""
        block = self._outside(self._matrix.T @ self._next)
        if not block.size:
            return False
        product = self._matrix @ block
        image = product.astype(np.float64)
        self.blocks.append(block)
        self._images.append(image)
        border = np.vstack([other.T @ image for other in self._images])
        count = len(self._gram)
        self._gram = np.block([[self._gram, border[:count]], [border.T]])
        self._next = _orthonormal(product)
        return True

    def _outside(self, columns: NDArray[Any]) -> NDArray[Any]:
        """Returns an orthonormal basis of the part of the columns outside the space."""
        before = np.linalg.norm(columns)
        self._project_out(columns)
        if self.blocks and np.linalg.norm(columns) <= self._floor * before:
            return columns[:, :0]
        # Project out again: rounding errors are as large as the part that was removed.
        columns = _orthonormal(columns)
        self._project_out(columns)
        return _orthonormal(columns)[:, : self._matrix.shape[1] - len(self._gram)]

    def _project_out(self, columns: NDArray[Any]) -> None:
        for block in self.blocks:
            columns -= block @ (block.T @ columns)

    def captured(self, rank: int) -> float:
        """Returns the energy of the best approximation of that rank with rows in the space."""
        return float(np.linalg.eigvalsh(self._gram)[-rank:].sum())

    def leading(self, rank: int) -> tuple[Matrix, Matrix]:
        """Returns a basis that holds the leading right vectors, and its image."""
        basis = np.hstack(self.blocks).astype(np.float64)
        image = np.hstack(self._images)
        if self._matrix.dtype == np.float64:
            return basis, image
        # The squares in the Gram matrix lose no digits that float32 has not lost already.
        _, vectors = np.linalg.eigh(self._gram)
        return basis @ vectors[:, -rank:], image @ vectors[:, -rank:]


def _orthonormal(columns: NDArray[Any]) -> NDArray[Any]:
    """Returns an orthonormal basis of the span, without directions that are zero in float32.

    For float32 the eigenvectors of the Gram matrix are many times faster than LAPACK's QR.
    """
    if columns.dtype == np.float64:
        basis: Matrix = np.linalg.qr(columns)[0]
        return basis
    double = columns.astype(np.float64)
    values, vectors = np.linalg.eigh(double.T @ double)
    kept = values > 1e-10 * values[-1:]
    whitening = vectors[:, kept] / np.sqrt(values[kept])
    single: NDArray[np.float32] = (double @ whitening).astype(np.float32)
    return single


def _fix_signs(u: Matrix, vt: Matrix) -> tuple[Matrix, Matrix]:
    """Makes the largest element of each left vector positive: u and v share a free sign."""
    largest = np.abs(u).argmax(axis=0)
    signs = np.where(u[largest, np.arange(u.shape[1])] < 0, -1.0, 1.0)
    return u * signs, vt * signs[:, np.newaxis]
