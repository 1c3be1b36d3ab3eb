import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ModelError, RecipeError
from exporter.lowrank import svd
from exporter.lowrank.svd import truncated_svd

SPECTRA = {
    "exponential": lambda count: 2.0 ** -np.arange(count),
    "polynomial": lambda count: 1.0 / (1 + np.arange(count)),
    "slow": lambda count: 1.0 / np.sqrt(1 + np.arange(count)),
    "flat": np.ones,
    "step": lambda count: np.where(np.arange(count) < count / 2, 1.0, 1e-3),
    "rank_deficient": lambda count: np.where(np.arange(count) < max(1, count // 3), 1.0, 0.0),
    "zero": np.zeros,
}


def matrix_with(spectrum, m, n, seed):
    """An m x n matrix with the singular values of the spectrum, in random directions."""
    generator = np.random.default_rng(seed)
    count = min(m, n)
    left, _ = np.linalg.qr(generator.standard_normal((m, count)))
    right, _ = np.linalg.qr(generator.standard_normal((n, count)))
    return left * SPECTRA[spectrum](count) @ right.T


def optimum(matrix, rank):
    """The smallest error of any approximation of that rank, in the Frobenius norm."""
    return np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])


def check(matrix, rank):
    """All that is promised of a truncated SVD."""
    result = truncated_svd(matrix, rank)
    m, n = matrix.shape
    assert (result.u.shape, result.s.shape, result.vt.shape) == ((m, rank), (rank,), (rank, n))
    np.testing.assert_allclose(result.u.T @ result.u, np.eye(rank), atol=1e-10)
    np.testing.assert_allclose(result.vt @ result.vt.T, np.eye(rank), atol=1e-10)
    assert (result.s >= 0).all()
    assert (np.diff(result.s) <= 1e-12).all()

    norm = np.linalg.norm(matrix)
    error = np.linalg.norm(matrix - result.u * result.s @ result.vt)
    assert error <= 1.001 * optimum(matrix, rank) + 1e-12 * norm
    # The predicted error is a square root of a difference, hence half of the digits.
    assert result.relative_error * norm == pytest.approx(error, rel=1e-6, abs=1e-7 * norm)
    assert 0 <= result.discarded_energy <= 1


@given(
    spectrum=st.sampled_from(sorted(SPECTRA)),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    data=st.data(),
)
def test_lapack_path_is_optimal(spectrum, m, n, data):
    rank = data.draw(st.integers(1, min(m, n)), label="rank")
    check(matrix_with(spectrum, m, n, seed=m * n), rank)


@given(
    spectrum=st.sampled_from(sorted(SPECTRA)),
    m=st.integers(80, 200),
    n=st.integers(80, 200),
    data=st.data(),
)
def test_randomized_path_is_within_a_thousandth_of_optimal(spectrum, m, n, data):
    rank = data.draw(st.integers(1, min(m, n) // 4 - svd.OVERSAMPLING), label="rank")
    matrix = matrix_with(spectrum, m, n, seed=m * n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svd, "EXACT_LIMIT", 0)
        check(matrix, rank)


@pytest.mark.parametrize("shape", [(900, 800), (1200, 800), (800, 1200)])
def test_large_matrices_take_the_randomized_path_and_stay_close_to_optimal(shape):
    """The hardest case for it: noise, whose spectrum hardly decays."""
    matrix = np.random.default_rng(0).standard_normal(shape)
    assert min(shape) > svd.EXACT_LIMIT
    check(matrix, 20)


@pytest.mark.parametrize("limit", [0, 768], ids=["randomized", "lapack"])
def test_same_matrix_gives_the_same_bits(monkeypatch, limit):
    monkeypatch.setattr(svd, "EXACT_LIMIT", limit)
    matrix = matrix_with("slow", 120, 100, seed=1)
    first, second = truncated_svd(matrix, 7), truncated_svd(matrix.copy(), 7)
    for name in ("u", "s", "vt"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_signs_do_not_depend_on_the_path(monkeypatch):
    matrix = matrix_with("exponential", 110, 90, seed=2)
    exact = truncated_svd(matrix, 5)
    monkeypatch.setattr(svd, "EXACT_LIMIT", 0)
    randomized = truncated_svd(matrix, 5)
    np.testing.assert_allclose(randomized.u, exact.u, atol=1e-6)
    np.testing.assert_allclose(randomized.vt, exact.vt, atol=1e-6)


def test_float32_is_computed_in_float64_and_left_as_it_was():
    matrix = matrix_with("slow", 30, 20, seed=3).astype("float32")
    before = matrix.copy()
    result = truncated_svd(matrix, 20)
    assert result.u.dtype == result.s.dtype == result.vt.dtype == np.float64
    np.testing.assert_allclose(result.u * result.s @ result.vt, matrix, atol=1e-13)
    np.testing.assert_array_equal(matrix, before)


def test_full_rank_discards_nothing():
    result = truncated_svd(matrix_with("slow", 12, 9, seed=4), 9)
    assert result.discarded_energy == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(value):
    matrix = np.ones((4, 3))
    matrix[2, 1] = value
    with pytest.raises(ModelError, match=r"\(4, 3\).*NaN or infinite"):
        truncated_svd(matrix, 2)


@pytest.mark.parametrize("rank", [-1, 0, 4])
def test_refuses_ranks_out_of_range(rank):
    with pytest.raises(RecipeError, match=rf"within 1 and 3.*\(5, 3\).*Received: {rank}\."):
        truncated_svd(np.ones((5, 3)), rank)
