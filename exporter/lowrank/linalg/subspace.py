"""The truncated SVD of a matrix that is trained, inside a compiled step.

A full SVD at each step is what makes training at the truncation slow. A matrix moves by little
between two steps, so one subspace iteration (Halko, Martinsson and Tropp, 2011, algorithm 4.4) from
where the last one ended keeps up with it: two products with a few columns, whatever the spectrum.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.lowrank.linalg.svd import truncated_svd

EXTRA = 10
"""Columns beyond the rank, among which later leading directions may come up."""


class Truncated(NamedTuple):
    """A truncation: U (m x r) and S Vt (r x n), and the basis (n x k) that the next starts from."""

    thin: Any
    wide: Any
    basis: Any


def starting_basis(matrix: NDArray[Any], rank: int) -> NDArray[np.float32]:
    """Returns leading right singular vectors of m x n to start from, n x k.

    k is the rank of the truncations and ``EXTRA``, as far as the matrix is large enough.
    """
    columns = max(rank, min(rank + EXTRA, *matrix.shape))
    return truncated_svd(matrix, columns).vt.T.astype(np.float32)


def iterate(matrix: Any, basis: Any, rank: int) -> Truncated:
    """Makes one subspace iteration on TensorFlow tensors, eagerly or in a graph.

    All of them may be stacks of matrices, along axes before the two of the matrix.

    As long as the matrix moves by little between two calls, the error stays within 1.001 of the
    optimum.

    Args:
        matrix: m x n.
        basis: n x k, from ``starting_basis`` or the last iteration.
        rank: r, at most k.
    """
    import tensorflow as tf

    left, _ = tf.linalg.qr(matrix @ basis)
    projected = tf.matmul(left, matrix, transpose_a=True)
    # The k x k Gram matrix stands in for the SVD of k x n, which is slow, and may fail to converge.
    _, vectors = tf.linalg.eigh(tf.matmul(projected, projected, transpose_b=True))
    leading = vectors[..., -rank:]
    # Rows that are orthogonal to one another: they need no second QR, only their lengths.
    rows = tf.matmul(vectors, projected, transpose_a=True)
    space = tf.linalg.matrix_transpose(tf.math.l2_normalize(rows, axis=-1))
    return Truncated(left @ leading, rows[..., -rank:, :], space)
