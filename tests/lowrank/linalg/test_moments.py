import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.lowrank.linalg.moments import GRADIENT_RIDGE, Accumulator, Fisher


def summary(left, right):
    """Count, means and scatter of rows x g x n."""
    left_mean, right_mean = left.mean(axis=0), right.mean(axis=0)
    scatter = np.einsum("rgi,rgj->gij", left - left_mean, right - right_mean)
    return len(left), left_mean, right_mean, scatter


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    groups=st.integers(1, 3),
    n=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1.0, -1e6]),
    seed=st.integers(0, 99),
)
def test_batches_of_any_sizes_add_up_to_the_moments_of_the_whole(sizes, groups, n, offset, seed):
    """Also where the mean is a million times the deviation, whose square float64 barely holds."""
    generator = np.random.default_rng(seed)
    shape = sum(sizes), groups, n
    left = generator.normal(size=shape) + offset
    right = left @ generator.normal(size=(n, n)) + generator.normal(size=shape) + 3
    accumulator = Accumulator()
    start = 0
    for size in sizes:
        stop = start + size
        accumulator.add(left[start:stop], right[start:stop])
        start = stop
    count, mean, _, scatter = summary(left, right)
    scale = max(1.0, abs(offset))
    np.testing.assert_allclose(accumulator.mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(accumulator.covariance, scatter / count, atol=1e-8 * scale)
    np.testing.assert_allclose(
        accumulator.about_zero,
        np.einsum("rgi,rgj->gij", left, right) / count,
        rtol=1e-9,
        atol=1e-8 * scale,
    )
    assert accumulator.covariance.dtype == accumulator.mean.dtype == np.float64


def test_the_order_of_batches_does_not_matter():
    batches = np.random.default_rng(0).normal(size=(5, 7, 1, 3))
    forward, backward = Accumulator(), Accumulator()
    for batch in batches:
        forward.add(batch, batch)
    for batch in batches[::-1]:
        backward.add(batch, batch)
    np.testing.assert_allclose(forward.covariance, backward.covariance, atol=1e-14)
    np.testing.assert_allclose(forward.mean, backward.mean, atol=1e-14)


def test_two_parts_are_merged_to_the_moments_of_the_whole():
    rows = np.random.default_rng(0).normal(3, 1, (9, 2, 3))
    first, second, whole = Accumulator(), Accumulator(), Accumulator()
    first.add(rows[:4], rows[:4])
    second.add(rows[4:], rows[4:])
    whole.add(rows, rows)
    for merged in (first.merged(second), first.merged(Accumulator()).merged(second)):
        assert merged.count == 9
        np.testing.assert_allclose(merged.mean, whole.mean)
        np.testing.assert_allclose(merged.covariance, whole.covariance, atol=1e-14)
        np.testing.assert_allclose(merged.about_zero, whole.about_zero)


def test_float32_batches_are_merged_in_float64():
    """Ten thousand batches, each of which float32 would round."""
    rows = np.random.default_rng(0).normal(100, 1, size=(10_000, 4, 1, 2)).astype("float32")
    accumulator = Accumulator()
    for batch in rows:
        accumulator.add(batch, batch)
    whole = rows.reshape(-1, 1, 2).astype("float64")
    expected = np.cov(whole[:, 0].T, bias=True)
    np.testing.assert_allclose(accumulator.covariance[0], expected, rtol=1e-4, atol=1e-4)


class TestFisher:
    @given(groups=st.integers(1, 3), n=st.integers(1, 6), rank=st.integers(1, 6))
    def test_its_root_squares_to_it_and_a_ridge(self, groups, n, rank):
        factor = np.random.default_rng(n).normal(size=(groups, n, rank))
        matrix = factor @ factor.swapaxes(1, 2)
        root = Fisher(matrix).root
        ridge = GRADIENT_RIDGE * np.trace(matrix, axis1=1, axis2=2) / n
        expected = matrix + ridge[:, None, None] * np.eye(n)
        np.testing.assert_allclose(root @ root.swapaxes(1, 2), expected, atol=1e-10)
        np.testing.assert_array_equal(root, np.tril(root))

    def test_where_the_loss_depends_on_nothing_all_outputs_count_alike(self):
        np.testing.assert_array_equal(Fisher(np.zeros((2, 3, 3))).root, [np.eye(3)] * 2)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scale_does_not_matter(self, scale):
        root = Fisher(scale * np.eye(2)[None]).root
        np.testing.assert_allclose(root, np.sqrt(1.1 * scale) * np.eye(2)[None])
