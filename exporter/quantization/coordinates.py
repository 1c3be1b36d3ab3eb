"""Coordinates of the latent between two factors, K1 (m x r) and K2 (r x n).

For any invertible R, ``K1 K2 = (K1 R) (R^-1 K2)``. The functions here return both factors in other
coordinates, with the same product.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from exporter.graph.types import Tensor
from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.scheme import KernelFormat, levels

_RIDGE = 1e-4
"""Ridge of the moment of a latent, as a part of its mean variance: data may miss directions."""

_STEPS = 100
_RATE = 0.1
_MOMENTUM = 0.9
"""Momentum of the descent. The rate is the relative change of R, with cosine decay."""

_TINY = 1e-300
"""Keeps logarithms and divisions finite."""

_POWER = 16
"""Exponent of the mean that replaces the largest step, whose gradient has a single element."""


def balanced(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Returns m x r and r x n factors of the same product with the roots of its singular values."""
    left, upper = np.linalg.qr(first)
    right, lower = np.linalg.qr(second.T)
    u, s, vt = np.linalg.svd(upper @ lower.T)
    half = np.sqrt(s)
    return left @ (u * half), half[:, None] * (vt @ right.T)


def whitened(first: Floats, second: Floats, moment: Floats) -> tuple[Floats, Floats]:
    """Returns factors of the same product that are balanced for latents of a second moment.

    With ``moment = G Gt`` and ``Gt K2 = U S Vt``, they are ``K1 G^-t U S^1/2`` and ``S^1/2 Vt``:
    each latent has the variance S, and the second factor the singular values S^1/2. The factors are
    m x r and r x n with r at most n; the moment of ``x first`` is r x r.
    """
    values, vectors = np.linalg.eigh(moment)
    ridge = _RIDGE * max(float(np.mean(values)), 1e-30)
    scale = np.sqrt(np.maximum(values, 0.0) + ridge)
    u, s, vt = np.linalg.svd((vectors * scale).T @ second, full_matrices=False)
    half = np.sqrt(s)
    return first @ (vectors / scale) @ (u * half), half[:, None] * vt


@dataclass(frozen=True)
class Steps:
    """The sizes of the quantization steps.

    Attributes:
        kernels: The integers of both kernels.
        latents_share: Whether the ``"tensor"`` or a ``"row"`` of latents shares a step.
        activation_bits: Bits of a latent.
    """

    kernels: KernelFormat
    latents_share: Literal["tensor", "row"]
    activation_bits: int = 8


def refined(
    first: Floats, second: Floats, latents: Floats, energy: float, steps: Steps
) -> tuple[Floats, Floats]:
    """Returns factors of the same product with less predicted noise.

    The logarithm of ``predicted_noise`` is minimized over R from the identity, along its relative
    gradient (Cardoso and Laheld, 1996). For the arguments see ``predicted_noise``.
    """
    r = _descent(steps)(first, second, latents, energy).numpy()
    return first @ r, np.asarray(np.linalg.solve(r, second))


@functools.cache
def _descent(steps: Steps) -> Any:
    """Returns a function that descends from given factors to R, compiled for all sizes."""
    import tensorflow as tf

    matrix, number = (tf.TensorSpec(shape, tf.float64) for shape in ((None, None), ()))

    @tf.function(input_signature=[*3 * [matrix], number])  # type: ignore[untyped-decorator]
    def descend(first: Tensor, second: Tensor, latents: Tensor, energy: Tensor) -> Tensor:
        r = tf.eye(tf.shape(second)[0], dtype=tf.float64)
        momentum = tf.zeros_like(r)
        for step in tf.range(_STEPS):
            with tf.GradientTape() as tape:
                tape.watch(r)
                factors = first @ r, tf.linalg.solve(r, second)
                noise = predicted_noise(*factors, latents @ r, energy, steps)
                result = tf.math.log(noise + _TINY)
            slope = tf.matmul(r, tape.gradient(result, r), transpose_a=True)
            momentum = _MOMENTUM * momentum + slope
            # The size of an orthogonal matrix is one.
            size = tf.sqrt(tf.reduce_sum(momentum**2) / tf.cast(tf.shape(r)[0], tf.float64))
            decay = (1 + tf.cos(np.pi / _STEPS * tf.cast(step, tf.float64))) / 2
            r -= _RATE * decay * tf.math.divide_no_nan(r @ momentum, size)
        return r

    return descend


def predicted_noise(
    first: Tensor, second: Tensor, latents: Tensor, energy: Tensor, steps: Steps
) -> Tensor:
    """Predicts the expected squared norm of the noise that integers add to the outputs.

    Rounding to steps of size s adds noise of variance s^2 / 12. In 8 bits the step of a symmetric
    kernel is a 127th of its largest magnitude, the step of the latents a 255th of their range. The
    noise of a latent is weighted by the squared norm of its row of K2.

    Args:
        first: m x r.
        second: r x n.
        latents: Rows x r, on calibration data.
        energy: Mean squared norm of the inputs of the first factor.
        steps: The sizes of the quantization steps.
    """
    import tensorflow as tf

    first_steps, second_steps = (_kernel_steps(kernel, steps.kernels) for kernel in (first, second))
    highest, lowest = tf.reduce_max(latents, axis=1), tf.reduce_min(latents, axis=1)
    ranges = tf.maximum(highest, 0.0) - tf.minimum(lowest, 0.0)
    latent_steps = _joint(ranges / levels(steps.activation_bits), steps.latents_share)
    latent_noise = energy * first_steps**2 + tf.reduce_mean(latent_steps**2)
    latent_energy = tf.reduce_mean(tf.reduce_sum(latents**2, axis=1))
    effects = tf.reduce_sum(second**2, axis=1)
    squares = tf.reduce_sum(latent_noise * effects) + latent_energy * tf.reduce_sum(second_steps**2)
    return squares / 12


def _kernel_steps(kernel: Tensor, kernels: KernelFormat) -> Tensor:
    import tensorflow as tf

    if kernels.symmetric:
        largest = tf.reduce_max(tf.abs(kernel), axis=0)
        return _joint(largest / levels(kernels.bits - 1), kernels.granularity)
    ends = (tf.reduce_max(tf.maximum(sign * kernel, 0.0), axis=0) for sign in (1, -1))
    return sum(_joint(end / levels(kernels.bits), kernels.granularity) for end in ends)


def _joint(sizes: Tensor, shared_by: str) -> Tensor:
    """Returns sizes of steps; where a tensor shares one, about the largest for each."""
    import tensorflow as tf

    if shared_by != "tensor":
        return sizes
    top = tf.reduce_max(sizes)
    mean = tf.reduce_mean((sizes / (top + _TINY)) ** _POWER)
    return top * (mean + _TINY) ** (1 / _POWER) * tf.ones_like(sizes)


def random_rotation(size: int, generator: np.random.Generator) -> Floats:
    """Draws an orthogonal matrix: a Hadamard matrix with random signs, or a uniform one.

    A Hadamard matrix spreads each axis evenly over all axes.
    """
    hadamard = hadamard_matrix(size)
    if hadamard is None:
        rotation, upper = np.linalg.qr(generator.standard_normal((size, size)))
        return np.asarray(rotation * np.sign(np.diag(upper)))
    signs = generator.choice([-1.0, 1.0], size)
    return np.asarray(signs[:, None] * hadamard / math.sqrt(size))


def hadamard_matrix(size: int) -> Floats | None:
    """Returns a matrix of 1 and -1 with orthogonal rows; None if no construction here gives one.

    Sylvester's construction doubles a matrix; Paley's has size q + 1 for each prime q = 4k - 1.
    """
    if size in {1, 2}:
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:size, :size]
    if size % 4:
        return None
    prime = size - 1
    if all(prime % divisor for divisor in range(2, math.isqrt(prime) + 1)):
        squares = {x * x % prime for x in range(1, prime)}
        character = np.array([0.0] + [1.0 if x in squares else -1.0 for x in range(1, prime)])
        index = np.arange(prime)
        skew = np.zeros((size, size))
        skew[0, 1:], skew[1:, 0] = 1.0, -1.0
        skew[1:, 1:] = character[(index[:, None] - index) % prime]
        return np.asarray(skew + np.eye(size))
    half = hadamard_matrix(size // 2)
    return None if half is None else np.block([[half, half], [half, -half]])
