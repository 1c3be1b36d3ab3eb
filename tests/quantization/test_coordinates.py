"""Coordinates of a latent: the product stays, what integers lose does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.quantization.coordinates import (
    Latents,
    Steps,
    balanced,
    hadamard_matrix,
    noise_and_slope,
    predicted_noise,
    random_rotation,
    refined,
    whitened,
)
from exporter.quantization.scheme import KernelFormat
from exporter.quantization.simulation import round_weights

TENSOR, ROW = Steps(KernelFormat("tensor"), "tensor"), Steps(KernelFormat("channel"), "row")
STEPS = st.sampled_from(
    [
        TENSOR,
        ROW,
        Steps(KernelFormat("channel", 4), "row"),
        Steps(KernelFormat("tensor"), "tensor", activation_bits=16),
        Steps(KernelFormat("tensor", symmetric=False), "tensor"),
    ]
)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def rounded(values, step):
    return np.rint(values / step) * step


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(6, 12), st.integers(1, 6), st.integers(6, 12)),
    seed=st.integers(0, 1000),
    redundant=st.booleans(),
    steps=STEPS,
)
def test_products_are_kept(shape, seed, redundant, steps):
    m, r, n = shape
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((30, m)) * rng.uniform(0.01, 10, m)
    first, second = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    if redundant:
        first[:, -1] = first[:, 0]
    latent = rows @ first
    pairs = (
        balanced(first, second),
        whitened(first, second, latent.T @ latent / 30),
        refined(first, second, latent, 10.0, steps),
    )
    for left, right in pairs:
        assert (left.shape, right.shape) == ((m, r), (r, n))
        np.testing.assert_allclose(left @ right, first @ second, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 64])
def test_hadamard_matrices(size):
    matrix = hadamard_matrix(size)
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [1, 3, 10, 20, 28, 36, 52])
def test_rotations_are_orthogonal(size):
    rotation = random_rotation(size, np.random.default_rng(0))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("share", ["tensor", "row"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (8, 16)])
def test_the_noise_is_about_what_is_predicted(
    share, granularity, symmetric, weight_bits, activation_bits
):
    inputs, first, second = draw(0, (400, 50), (50, 20), (20, 60))
    latents = inputs @ first
    kernels = KernelFormat(granularity, weight_bits, symmetric)
    thin, wide = (round_weights(kernel, (-1,), kernels) for kernel in (first, second))
    rows = 1 if share == "row" else None
    ranges = np.ptp(np.pad(latents, ((0, 0), (0, 1))), axis=rows, keepdims=True)
    outputs = rounded(inputs @ thin, ranges / (2**activation_bits - 1)) @ wide
    actual = np.mean(np.sum((outputs - latents @ second) ** 2, axis=1))
    energy = np.mean(np.sum(inputs**2, axis=1))
    steps = Steps(kernels, share, activation_bits)
    predicted = float(predicted_noise(first, second, latents, energy, steps))
    assert predicted == pytest.approx(actual, rel=0.5 if "tensor" in {share, granularity} else 0.1)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 1e6]), steps=STEPS)
def test_refined_factors_are_predicted_less_noise_whatever_the_scale(seed, scale, steps):
    inputs, first, second = draw(seed, (60, 12), (12, 4), (4, 15))
    inputs, second = scale * inputs, second * np.array([[10.0], [1.0], [1.0], [0.1]])
    energy = np.mean(np.sum(inputs**2, axis=1))
    before = predicted_noise(first, second, inputs @ first, energy, steps)
    left, right = refined(first, second, inputs @ first, energy, steps)
    after = predicted_noise(left, right, inputs @ left, energy, steps)
    assert after < 0.9 * before
    np.testing.assert_allclose(left @ right, first @ second, atol=1e-9)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), steps=STEPS)
def test_the_slope_is_the_derivative_of_the_noise(seed, steps):
    latents, first, second, direction = draw(seed, (20, 3), (8, 3), (3, 9), (3, 3))

    def noise(size):
        r = np.eye(3) + size * direction
        return predicted_noise(first @ r, np.linalg.solve(r, second), latents @ r, 10.0, steps)

    given = Latents(latents.T, latents.T @ latents / 20, 10.0)
    value, slope = noise_and_slope(first, second, given, steps)
    assert value == pytest.approx(noise(0.0))
    expected = (noise(1e-7) - noise(-1e-7)) / 2e-7
    assert np.sum(slope * direction) == pytest.approx(expected, rel=1e-4, abs=1e-5 * value)


@pytest.mark.parametrize("dead", [(0, slice(None)), (slice(None), 0), slice(None)])
@pytest.mark.parametrize("steps", [TENSOR, ROW])
def test_zeros_are_no_obstacle(dead, steps):
    latents, first, second = draw(0, (20, 3), (8, 3), (3, 9))
    first[dead] = second[dead] = 0.0
    left, right = refined(first, second, latents, 1.0, steps)
    assert np.isfinite(left).all()
    np.testing.assert_allclose(left @ right, first @ second, atol=1e-12)
