import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.lowrank.linalg.moments import GRADIENT_RIDGE, Accumulator, Fisher


def summary(left, right):
    """What a batch of rows x g x n hands to an accumulator."""
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
        accumulator.add(*summary(left[start:stop], right[start:stop]))
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
    batches = [summary(rows, rows) for rows in np.random.default_rng(0).normal(size=(5, 7, 1, 3))]
    forward, backward = Accumulator(), Accumulator()
    for batch in batches:
        forward.add(*batch)
    for batch in reversed(batches):
        backward.add(*batch)
    np.testing.assert_allclose(forward.covariance, backward.covariance, atol=1e-14)
    np.testing.assert_allclose(forward.mean, backward.mean, atol=1e-14)


def test_counts_of_32_bits_do_not_overflow():
    """As TensorFlow gives them; two batches of a convolution have more pairs of rows than that."""
    ones, nothing = np.ones((1, 1)), np.zeros((1, 1, 1))
    accumulator = Accumulator()
    for value in (0.0, 2.0):
        accumulator.add(np.int32(60_000), value * ones, value * ones, nothing)
    assert accumulator.covariance.item() == 1.0


def test_float32_batches_are_merged_in_float64():
    """Ten thousand batches, each of which float32 would round."""
    rows = np.random.default_rng(0).normal(100, 1, size=(10_000, 4, 1, 2)).astype("float32")
    accumulator = Accumulator()
    for batch in rows:
        accumulator.add(*summary(batch, batch))
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
