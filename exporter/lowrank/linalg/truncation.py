"""Truncation of a kernel to rank r such that the *outputs* change the least.

A kernel K (m x n) maps inputs x to y = Kt x. It is approximated by K P Qt with P and Q of r columns
each, so only the n x n moments of the outputs matter:

* plain: P = Q = the leading right singular vectors of K (Eckart and Young, 1936);
* whitened: P = Q = the leading eigenvectors of cov(y), which is what DRONE (Chen et al., 2021) and
  SVD-LLM (Wang et al., 2024) compute by whitening the inputs;
* weighted by the gradient (KFAC-SVD): errors count by G = E[g gt], the loss gradient at y;
* cascade: with z = Kt x' from inputs that are compressed already, reduced-rank regression (Izenman,
  1975) of y on z.

Where the layer has a bias, it corrects the error of the mean.
"""

from dataclasses import dataclass

import numpy as np

from exporter.errors import ModelError
from exporter.lowrank.linalg import svd
from exporter.lowrank.linalg.moments import Floats, Moments

INPUT_RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Ridges of the input covariance to choose from, as parts of the mean variance.

The fewer the samples, the more is needed: the ridge with the least error on held-out data is taken.
"""

MOST_GROWTH = 4.0
GROWTH_TOLERANCE = 0.1
"""Largest row of a product of factors over the largest row of its kernel, and the part of the error
on held-out data that a larger ridge may cost to keep it.

Where the data hardly show an input, a small ridge gives it weights many times as large as those of
the kernel. In float they cost nothing, in integers they widen the steps of a whole tensor.
"""

ROUNDING = 1e-4
"""Part of the outputs' energy by which rounding may make an error negative at full rank, because
batches are multiplied in float32. Low ranks discard many times as much."""

JITTER = 2.0**-23
"""Ridge of the outputs' covariance, as a part of the mean variance: what float32 distinguishes."""


@dataclass(frozen=True)
class Truncation:
    """A kernel of low rank.

    Attributes:
        matrices: The factors (US, Vt) or (U, S, Vt), each g x a x b.
        bias_shift: Addend of the bias, g x n, or None.
        discarded_energy: The part of the squared norm that is left out, 0 to 1: of the kernel, or
            of the (weighted) outputs if moments were given, with the losses of the layers before.
    """

    matrices: tuple[Floats, ...]
    bias_shift: Floats | None
    discarded_energy: float

    @property
    def relative_error(self) -> float:
        """The predicted norm of the error over the norm of the kernel or of its outputs."""
        return float(np.sqrt(self.discarded_energy))


def truncate(
    kernel: Floats, rank: int, moments: Moments | None = None, *, merge: bool = True
) -> Truncation:
    """Truncates a stack of kernels.

    Args:
        kernel: g x m x n; may be float32 if there are no moments.
        rank: The rank r of each matrix.
        moments: Moments of the outputs; None truncates by the weights alone.
        merge: Whether S is merged into U.

    Raises:
        RecipeError: If the rank is out of its range.
        ModelError: If the kernel has an element that is not finite.
    """
    if moments is None:
        return _truncate_plainly(kernel, rank, merge)
    thin, wide = [], []
    left_out = total = 0.0
    shift = np.empty(kernel.shape[::2])
    for group, matrix in enumerate(kernel):
        gram = matrix.T @ matrix
        regression = _Regression(gram, moments, group)
        least = _best_ridge(regression, matrix, moments, group, rank)
        p, q, error = _solved(regression, moments, group, rank, least)
        thin.append(matrix @ p)
        wide.append(q.T)
        shift[group] = regression.bias_shift(p, q)
        left_out += error
        total += moments.energy(group)
    energy = float(np.clip(left_out / total, 0, 1)) if total else 0.0
    return Truncation(_factors(*_split(np.stack(thin), np.stack(wide)), merge), shift, energy)


def error_curve(kernel: Floats, moments: Moments | None = None) -> Floats:
    """Returns the squared error at every rank from 0 to min(m, n).

    Without moments it is the error of the weights; with moments, the expected error of the outputs,
    weighted by the gradient if it is known. The kernel is g x m x n. The value at full rank is 0.
    """
    full = min(kernel.shape[1:])
    energies: Floats = np.zeros(full)
    for group, matrix in enumerate(kernel):
        if moments is None:
            energies = energies + svd.singular_values(matrix) ** 2
        else:
            metric = _Regression(matrix.T @ matrix, moments, group).metric(INPUT_RIDGES[-1])
            values = np.linalg.eigvalsh(metric)[::-1][:full]
            energies = energies + np.maximum(values, 0.0)
    return np.append(np.cumsum(energies[::-1])[::-1], 0.0)


def _truncate_plainly(kernel: Floats, rank: int, merge: bool) -> Truncation:
    parts = [svd.truncated_svd(matrix, rank) for matrix in kernel]
    u, s, vt = (np.stack([getattr(part, name) for part in parts]) for name in ("u", "s", "vt"))
    norms = [svd.squared_norm(matrix) for matrix in kernel]
    left_out = sum(part.discarded_energy * norm for part, norm in zip(parts, norms, strict=True))
    energy = left_out / sum(norms) if sum(norms) else 0.0
    return Truncation(_factors(u, s, vt, merge), None, energy)


def _best_ridge(
    whole: "_Regression", matrix: Floats, moments: Moments, group: int, rank: int
) -> float:
    """Returns the ridge with the least error on the second fold, fitted on the first one.

    Ridges are tried from the largest down, until the error rises: the smallest ones may do well by
    chance, with large factors that cancel, which training and integers cannot use. A larger ridge
    is taken where factors grow by more than ``MOST_GROWTH``, and it costs next to nothing.
    """
    if moments.folds is None:
        return INPUT_RIDGES[-1]
    fitted, held_out = moments.folds
    regression = _Regression(matrix.T @ matrix, fitted, group, whole.ridge)
    tried: list[tuple[float, float, float]] = []
    for ridge in INPUT_RIDGES:
        p, q = regression.solve(ridge, rank)
        error = held_out.error(p, q, group)
        if _is_wrong(error, held_out, group) or (tried and error >= tried[-1][1]):
            break
        tried.append((ridge, error, _growth(matrix, p, q)))
    if not tried:
        return INPUT_RIDGES[0]
    least = tried[-1][1]  # At full rank, rounding may make it negative.
    most = least + GROWTH_TOLERANCE * abs(least)
    affordable = [each for each in tried if each[1] <= most]
    # From the best one up.
    small = (ridge for ridge, _, growth in reversed(affordable) if growth <= MOST_GROWTH)
    return next(small, affordable[0][0])


def _growth(matrix: Floats, p: Floats, q: Floats) -> float:
    """Returns the largest row of K P Qt over the largest row of K."""
    triangle = np.asarray(np.linalg.qr(q, mode="r"))
    rows = np.linalg.norm(matrix @ p @ triangle.T, axis=1)
    largest = np.linalg.norm(matrix, axis=1).max()
    return float(rows.max() / largest) if largest else 0.0


def _solved(
    regression: "_Regression", moments: Moments, group: int, rank: int, least: float
) -> tuple[Floats, Floats, float]:
    """Returns P, Q and their error, with the least ridge, from one on, that solves the system."""
    for ridge in (ridge for ridge in reversed(INPUT_RIDGES) if ridge >= least):
        p, q = regression.solve(ridge, rank)
        error = moments.error(p, q, group)
        if not _is_wrong(error, moments, group):
            return p, q, error
    raise ModelError(
        f"The error of a truncation must not be negative. Received: {error:.3g} at rank {rank} for "
        f"outputs of energy {moments.energy(group):.3g}. Their moments contradict each other; "
        "--method svd does without them."
    )


def _is_wrong(error: float, moments: Moments, group: int) -> bool:
    """Tells whether an error is negative, as of a system too nearly singular to be solved."""
    return not error >= -ROUNDING * moments.energy(group)


class _Regression:
    """Regresses the outputs ``y`` of one kernel K on its outputs ``z`` in the compressed model.

    A ridge R of the inputs' covariance is a ridge of the outputs' along Kt K. It keeps directions
    that the data do not show, and all of them where the data show none. With S the scatter of z,
    C that of z and y, W Wt the weights of the errors, and L Lt = S + R, the half is
    H = L^-1 (C + R) W, the predictor L^-t H, and the metric Ht H.
    """

    def __init__(
        self, gram: Floats, moments: Moments, group: int, ridge: Floats | None = None
    ) -> None:
        """Takes Kt K, and the weighted ridge of another regression of the same weights."""
        self._moments, self._group, self._gram = moments, group, gram
        scatters = moments.compressed_scatter
        self._scatter: Floats = (moments.scatter if scatters is None else scatters)[group]
        norm, variance = np.trace(gram), np.trace(self._scatter)
        self._unit = variance / norm if norm and variance else None
        fisher = moments.fisher
        self._weight = np.eye(len(gram)) if fisher is None else fisher.root[group]
        cross = self._scatter if moments.cross is None else moments.cross[group]
        self._target = self._weighted(cross)
        self.ridge = self._weighted(gram) if ridge is None else ridge

    def _weighted(self, matrix: Floats) -> Floats:
        """Weighs errors; without C, y is z, the predictor is W, and the metric Wt (S + R) W."""
        weighted = matrix @ self._weight
        return weighted if self._moments.cross is not None else self._weight.T @ weighted

    def metric(self, part: float) -> Floats:
        """Returns the metric, n x n, with a ridge of that part of the mean variance."""
        if self._moments.cross is None:
            return self._target + self._scale(part) * self.ridge
        _, half = self._half(part)
        return half.T @ half

    def _scale(self, part: float) -> float:
        return 1.0 if self._unit is None else part * self._unit

    def _half(self, part: float) -> tuple[Floats, Floats]:
        """Returns L and H."""
        scale = self._scale(part)
        lower = _cholesky(self._scatter + scale * self._gram)
        return lower, _solve_triangular(lower, self._target + scale * self.ridge)

    def solve(self, part: float, rank: int) -> tuple[Floats, Floats]:
        """Returns P and Q, n x r each."""
        if self._moments.cross is None:
            _, vectors = svd.leading_eigenpairs(self.metric(part), rank)
            p = self._weight @ vectors
        else:
            lower, half = self._half(part)
            vectors = svd.leading_right_vectors(half, rank)
            p = _solve_triangular(lower, half @ vectors, adjoint=True)
        return p, _solve_triangular(self._weight, vectors, adjoint=True)

    def bias_shift(self, p: Floats, q: Floats) -> Floats:
        moments, group = self._moments, self._group
        mean = moments.mean if moments.compressed_mean is None else moments.compressed_mean
        shift: Floats = moments.mean[group] - q @ (p.T @ mean[group])
        return shift


def _cholesky(scatter: Floats) -> Floats:
    """Returns lower triangular L with ``L Lt`` the scatter of outputs, up to what float32 rounds.

    Where the kernel has fewer inputs than outputs, the scatter is singular; and batches are
    multiplied in float32, so that its smallest eigenvalues are noise. The jitter is as large.
    """
    jitter = JITTER * (np.trace(scatter) or 1.0) / len(scatter)
    while True:
        try:
            return np.asarray(np.linalg.cholesky(scatter + jitter * np.eye(len(scatter))))
        except np.linalg.LinAlgError as error:
            if not jitter < np.trace(scatter):
                raise ModelError(
                    f"The outputs of a kernel must be finite. Received: NaN or infinite moments of "
                    f"shape {scatter.shape}."
                ) from error
            jitter *= 10


def _solve_triangular(lower: Floats, right: Floats, *, adjoint: bool = False) -> Floats:
    """Solves ``lower X = right``, or with its transpose; NumPy has no such function."""
    import tensorflow as tf

    return np.asarray(tf.linalg.triangular_solve(lower, right, lower=True, adjoint=adjoint))


def _split(thin: Floats, wide: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns U, s and Vt of the product K1 K2, which is never formed.

    The scale of P and Q is arbitrary; training and half precision need factors of similar scale.
    """
    left, left_triangle = np.linalg.qr(thin)
    right, right_triangle = np.linalg.qr(np.swapaxes(wide, 1, 2))
    u, s, vt = np.linalg.svd(left_triangle @ np.swapaxes(right_triangle, 1, 2))
    return left @ u, s, vt @ np.swapaxes(right, 1, 2)


def _factors(u: Floats, s: Floats, vt: Floats, merge: bool) -> tuple[Floats, ...]:
    if merge:
        return u * s[:, np.newaxis], vt
    return u, s[..., np.newaxis] * np.eye(s.shape[-1]), vt
