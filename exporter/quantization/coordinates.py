"""Coordinates of the latent between two factors, K1 (m x r) and K2 (r x n).

For any invertible R, ``K1 K2 = (K1 R) (R^-1 K2)``. The functions here return both factors in other
coordinates, with the same product.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.scheme import KernelFormat, levels

_RIDGE = 1e-4
"""Ridge of the moment of a latent, as a part of its mean variance: data may miss directions."""

_STEPS = 100
_FEWEST_STEPS = 20
_LARGE = 256
"""Rank above which descents are shorter, for a step costs its square."""

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
    size = len(second)
    r: Floats = np.eye(size)
    momentum = np.zeros_like(r)
    columns, left, right = np.ascontiguousarray(latents.T), first, second
    moment = columns @ latents / len(latents)
    steps_taken = min(_STEPS, max(_FEWEST_STEPS, _STEPS * _LARGE // size))
    for step in range(steps_taken):
        given = Latents(r.T @ columns, r.T @ moment @ r, energy)
        noise, slope = noise_and_slope(left, right, given, steps)
        momentum = _MOMENTUM * momentum + slope / (noise + _TINY)
        # The size of an orthogonal matrix is one.
        length = math.sqrt((momentum**2).sum() / size)
        if length:
            decay = (1 + math.cos(math.pi / steps_taken * step)) / 2
            r = r - (_RATE * decay / length) * (r @ momentum)
            left, right = first @ r, np.asarray(np.linalg.solve(r, second))
    return left, right


def predicted_noise(
    first: Floats, second: Floats, latents: Floats, energy: float, steps: Steps
) -> float:
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
    given = Latents(latents.T, latents.T @ latents / len(latents), energy)
    return noise_and_slope(first, second, given, steps)[0]


class Latents(NamedTuple):
    """Latents r x rows, their second moment, and the energy of the inputs that they are made of."""

    columns: Floats
    moment: Floats
    energy: float


def noise_and_slope(
    first: Floats, second: Floats, latents: Latents, steps: Steps
) -> tuple[float, Floats]:
    """Returns the predicted noise, and its derivative by E for factors moved by R = 1 + E."""
    columns, moment, energy = latents
    kernels, bits = steps.kernels, steps.activation_bits
    signs = (None,) if kernels.symmetric else (1, -1)
    count = levels(kernels.bits - 1 if kernels.symmetric else kernels.bits)
    first_ends, second_ends = (
        [_Ends(kernel, (sign,), count, kernels.granularity) for sign in signs]
        for kernel in (first, second)
    )
    ranges = _Ends(columns, (1, -1), levels(bits), steps.latents_share)
    first_steps, second_steps = (
        functools.reduce(np.add, [end.steps for end in ends]) for ends in (first_ends, second_ends)
    )
    latent_noise = energy * first_steps**2 + (ranges.steps**2).sum() / columns.shape[1]
    latent_energy, effects = moment.trace(), (second**2).sum(axis=1)
    second_noise = (second_steps**2).sum()
    squares = latent_noise @ effects + latent_energy * second_noise

    slope = 2 * second_noise * moment - 2 * latent_noise[:, None] * (second @ second.T)
    slope += columns @ ranges.slope(2 * effects.sum() / columns.shape[1] * ranges.steps).T
    for end in first_ends:
        slope += first.T @ end.slope(2 * energy * first_steps * effects)
    for end in second_ends:
        slope -= end.slope(2 * latent_energy * second_steps) @ second.T
    return float(squares) / 12, slope / 12


class _Ends:
    """The steps of the columns of a matrix, by the ends of their ranges.

    Attributes:
        steps: The size of the steps of each column; where a tensor shares one, about the largest.
    """

    def __init__(
        self, values: Floats, signs: tuple[int | None, ...], count: int, shared_by: str
    ) -> None:
        """Finds the ends.

        Args:
            values: The matrix.
            signs: The ends whose distances from zero are added: 1 is the upper one, -1 the lower
                one, None the farther one.
            count: The number of steps.
            shared_by: Whether a ``"tensor"`` shares one step.
        """
        self._values, self._count, self._shared = values, count, shared_by == "tensor"
        highest, lowest = np.maximum(values.max(axis=0), 0.0), np.minimum(values.min(axis=0), 0.0)
        both = {1: highest, -1: lowest, None: np.where(highest >= -lowest, highest, lowest)}
        self._ends = [both[sign] for sign in signs]
        self.steps = self._sizes = functools.reduce(np.add, map(np.abs, self._ends)) / count
        if self._shared:
            top = self._sizes.max()
            mean = _power(self._sizes / (top + _TINY), _POWER).sum() / self._sizes.size
            self.steps = np.full(self._sizes.size, top * (mean + _TINY) ** (1 / _POWER))

    def slope(self, slopes: Floats) -> Floats:
        """Returns the derivative by the values of what has given derivatives by the steps."""
        if self._shared:
            parts = _power(self._sizes / (self.steps + _TINY), _POWER - 1) / len(self.steps)
            slopes = slopes.sum() * parts
        slopes, result = slopes / self._count, np.zeros(self._values.size)
        for end in self._ends:
            (hits,) = (self._values == end).ravel().nonzero()
            columns, shares = hits % len(end), slopes * np.sign(end)
            if len(hits) > len(end):  # Equals share.
                shares /= np.bincount(columns, minlength=len(end)).clip(min=1)
            result[hits] += shares[columns]
        return result.reshape(self._values.shape)


def _power(values: Floats, exponent: int) -> Floats:
    """Multiplies by squares, which is many times as fast as a power."""
    if exponent == 1:
        return values
    half = _power(values, exponent // 2)
    return half * half * values if exponent % 2 else half * half


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
