import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ModelError, RecipeError
from exporter.lowrank.linalg import svd
from exporter.lowrank.linalg.svd import leading_eigenpairs, singular_values, truncated_svd

SPECTRA = {
    "exponential": lambda count: 2.0 ** -np.arange(count),
    "polynomial": lambda count: 1.0 / (1 + np.arange(count)),
    "slow": lambda count: 1.0 / np.sqrt(1 + np.arange(count)),
    "flat": np.ones,
    "step": lambda count: np.where(np.arange(count) < count / 2, 1.0, 1e-3),
    "rank_deficient": lambda count: np.where(np.arange(count) < max(1, count // 3), 1.0, 0.0),
    "zero": np.zeros,
    "spike": lambda count: np.where(np.arange(count) < 1, 1e5, 1.0),
    "spike_beyond_float32": lambda count: np.where(np.arange(count) < 1, 1e9, 1.0),
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
    matrix = matrix.astype("float64")
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
    assert np.sqrt(result.discarded_energy) * norm == pytest.approx(
        error, rel=1e-6, abs=1e-6 * norm
    )
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


@pytest.mark.one_in(3)
@pytest.mark.parametrize("shape", [(900, 800), (1200, 800), (800, 1200)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_matrices_take_the_randomized_path_and_stay_close_to_optimal(shape, dtype):
    """The hardest case for it: noise, whose spectrum hardly decays."""
    matrix = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    assert min(shape) > svd.EXACT_LIMIT
    check(matrix, 20)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
def test_large_matrices_of_any_spectrum(spectrum):
    check(matrix_with(spectrum, 820, 800, seed=5), 30)


@pytest.mark.parametrize("limit", [0, 768], ids=["randomized", "lapack"])
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-6, 1e6, 1e30, 1e150])
def test_scale_does_not_matter(monkeypatch, limit, scale):
    """Squares of most such elements are beyond float32 or float64."""
    monkeypatch.setattr(svd, "EXACT_LIMIT", limit)
    matrix = matrix_with("slow", 110, 90, seed=6)
    expected, actual = truncated_svd(matrix, 5), truncated_svd(matrix * scale, 5)
    np.testing.assert_allclose(actual.s, expected.s * scale, rtol=1e-6)
    assert actual.discarded_energy == pytest.approx(expected.discarded_energy, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_any_dtype_will_do_on_the_randomized_path(monkeypatch, dtype):
    monkeypatch.setattr(svd, "EXACT_LIMIT", 0)
    check((100 * matrix_with("slow", 110, 90, seed=7)).astype(dtype), 5)


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


class TestLeadingEigenpairs:
    @given(
        spectrum=st.sampled_from(sorted(SPECTRA)),
        n=st.integers(1, 120),
        limit=st.sampled_from([0, 768]),
        data=st.data(),
    )
    def test_they_are_those_of_the_matrix(self, spectrum, n, limit, data):
        rank = data.draw(st.integers(1, n), label="rank")
        root = matrix_with(spectrum, n, n, seed=n)
        matrix = root @ root.T
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(svd, "EXACT_LIMIT", limit)
            values, vectors = leading_eigenpairs(matrix, rank)
        assert (values.shape, vectors.shape) == ((rank,), (n, rank))
        assert (values >= 0).all()
        assert (np.diff(values) <= 1e-12 * values[0]).all()
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-10)
        best = np.sort(np.linalg.eigvalsh(matrix))[::-1]
        # What they leave out of the trace is what a truncation by them gives up.
        left_out, least = np.trace(matrix) - values.sum(), best[rank:].sum()
        assert left_out <= 1.001 * least + 1e-12 * np.trace(matrix)
        kept = np.trace(vectors.T @ matrix @ vectors)
        assert kept == pytest.approx(values.sum(), rel=1e-6)

    def test_refuses_values_that_are_not_finite(self):
        with pytest.raises(ModelError, match=r"\(2, 2\).*NaN or infinite"):
            leading_eigenpairs(np.diag([1.0, np.nan]), 1)

    def test_refuses_ranks_out_of_range(self):
        with pytest.raises(RecipeError, match=r"within 1 and 3.*Received: 4\."):
            leading_eigenpairs(np.eye(3), 4)


@given(
    spectrum=st.sampled_from(sorted(SPECTRA)),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    limit=st.sampled_from([0, 768]),
)
def test_singular_values_are_those_of_lapack(spectrum, m, n, limit):
    matrix = matrix_with(spectrum, m, n, seed=m * n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svd, "EXACT_LIMIT", limit)
        actual = singular_values(matrix)
    expected = np.linalg.svd(matrix, compute_uv=False)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-7 * expected[0])
