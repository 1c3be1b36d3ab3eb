"""The warm-started truncation, against the full SVD."""

import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import ModelError, RecipeError
from exporter.lowrank.linalg.subspace import EXTRA, iterate, starting_basis


def draw(m, n, decay, seed=0):
    """A random matrix whose k-th singular value is about ``decay ** k``."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    right, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    return (left * decay ** np.arange(min(m, n))) @ right.T


def error_over_optimum(matrix, truncated, rank):
    """The ratio of the errors; what rounding alone costs counts as none."""
    product = (truncated.thin @ truncated.wide).numpy()
    least = np.sqrt(np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2))
    rounding = 1e-5 * np.linalg.norm(matrix)
    return (np.linalg.norm(matrix - product) + rounding) / (least + rounding)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (8, 12)])
def test_follows_a_matrix_that_drifts(shape, decay):
    rank = 5
    matrix = draw(*shape, decay)
    drift = np.random.default_rng(1).standard_normal((30, *shape))
    step = 0.01 * np.linalg.norm(matrix) / np.linalg.norm(drift[0])
    basis = starting_basis(matrix, rank)
    compiled = tf.function(iterate)
    for change in drift:
        matrix = matrix + step * change
        truncated = compiled(tf.constant(matrix, tf.float32), tf.constant(basis), rank)
        basis = truncated.basis
        assert error_over_optimum(matrix, truncated, rank) <= 1.001
        gram = tf.matmul(truncated.thin, truncated.thin, transpose_a=True)
        np.testing.assert_allclose(gram, np.eye(rank), atol=1e-5)


def test_finds_its_way_back_after_a_jump():
    basis = starting_basis(draw(50, 30, 0.9, seed=1), 4)
    matrix = draw(50, 30, 0.9, seed=2)
    for _ in range(15):
        truncated = iterate(tf.constant(matrix, tf.float32), tf.constant(basis), 4)
        basis = truncated.basis
    assert error_over_optimum(matrix, truncated, 4) <= 1.001


def test_recovers_from_a_matrix_of_zeros():
    matrix = draw(20, 12, 0.5)
    basis = starting_basis(np.zeros((20, 12)), 3)
    for value in (np.zeros((20, 12)), matrix, matrix, matrix):
        truncated = iterate(tf.constant(value, tf.float32), tf.constant(basis), 3)
        basis = truncated.basis
        assert np.isfinite(truncated.thin).all()
    assert error_over_optimum(matrix, truncated, 3) <= 1.001


def test_starts_from_as_many_columns_as_there_are():
    assert starting_basis(np.ones((40, 30)), 4).shape == (30, 4 + EXTRA)
    assert starting_basis(np.ones((9, 30)), 4).shape == (30, 9)


def test_refuses_what_a_truncated_svd_refuses():
    with pytest.raises(RecipeError, match=r"Received: 4\."):
        starting_basis(np.ones((5, 3)), 4)
    with pytest.raises(ModelError, match="NaN or infinite"):
        starting_basis(np.full((5, 3), np.nan), 2)
