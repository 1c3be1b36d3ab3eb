"""Policies that choose the rank of each kernel by its shape, or by its spectrum.

An error curve holds the squared error at every rank, so its differences are the squared singular
values. For a kernel in groups, both are sums over its groups, which get the same rank.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from exporter.errors import RecipeError
from exporter.lowrank.candidates import Candidate
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.ranks.policy import Choice, Curves, RankPolicy, below_break_even

LEAST_NOISE = 1e-12
"""Smallest noise variance considered, as a part of the energy per element; rounding is below it."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class FractionRank(RankPolicy):
    """Keeps a part of each kernel's parameters: the rank is that part of break-even, rounded down.

    TensorLy gives fractional ranks the same meaning (Kossaifi et al., 2019).
    """

    def __init__(self, fraction: float) -> None:
        """Sets the part; raises RecipeError unless it is between 0 and 1."""
        _check_between_0_and_1("fraction of the parameters", fraction)
        self.fraction = fraction

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {c.name: self._choose(c, c.kernel) for c in candidates if c.kernel is not None}

    def _choose(self, candidate: Candidate, kernel: Kernel) -> Choice:
        limit = kernel.break_even_rank
        # Where break-even is above it, the full rank is exact already.
        rank = min(max(1, math.floor(self.fraction * limit)), kernel.full_rank)
        reason = f"{_percent(rank / limit)} of break-even {limit:.1f}"
        return below_break_even(rank, candidate, reason)


class CurvePolicy(RankPolicy):
    """Base of the policies that look at one kernel and its error curve at a time."""

    needs_curves = True

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        choices = {}
        for candidate in candidates:
            if candidate.kernel is None:
                continue
            curve = curves[candidate.name]
            # A kernel of zeros has no relative error.
            choice = self.read(curve, candidate.kernel) if curve[0] else Choice(1, "all zero")
            choices[candidate.name] = below_break_even(choice.rank or 1, candidate, choice.reason)
        return choices

    @abstractmethod
    def read(self, curve: Floats, kernel: Kernel) -> Choice:
        """Reads a rank off the error curve of a kernel, which does not start with 0."""


class EnergyRank(CurvePolicy):
    """Takes the smallest rank that keeps a part of the energy, the squared norm."""

    def __init__(self, energy: float) -> None:
        """Sets the part; raises RecipeError unless it is between 0 and 1."""
        _check_between_0_and_1("energy to keep", energy)
        self.energy = energy

    def read(self, curve: Floats, kernel: Kernel) -> Choice:
        """See the base class."""
        discarded = curve / curve[0]
        # Rounding must not cost a rank.
        rank = int((discarded <= 1.0 - self.energy + 1e-12).argmax())
        return Choice(rank, f"keeps {_percent(1.0 - discarded[rank])} of the energy")


class StableRank(CurvePolicy):
    """Takes the squared Frobenius norm over the squared spectral norm, rounded up.

    It counts directions by their strength, and is never above the rank (Rudelson and Vershynin,
    2007).
    """

    def read(self, curve: Floats, kernel: Kernel) -> Choice:
        """See the base class."""
        stable = float(curve[0] / (curve[0] - curve[1]))
        # Rounding must not turn 3 into 4.
        return Choice(math.ceil(stable * (1.0 - 1e-9)), f"the stable rank is {stable:.1f}")


class VbmfRank(CurvePolicy):
    """Takes the number of directions above the noise, as ``vbmf_rank`` counts them; at least 1."""

    def read(self, curve: Floats, kernel: Kernel) -> Choice:
        """See the base class."""
        found = vbmf_rank(-np.diff(curve), (kernel.m, kernel.n))
        full = kernel.full_rank
        return Choice(max(1, found), f"VBMF finds {found} of {full} directions above the noise")


def vbmf_rank(energies: Floats, shape: tuple[int, int]) -> int:
    """Counts the directions of a matrix that are signal rather than noise.

    Computes the global analytic solution of empirical variational Bayes matrix factorization
    (Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed
    variational Bayesian matrix factorization", JMLR 14, 2013; the estimate of the noise and the
    constant 2.5129 are from "Perfect dimensionality recovery by variational Bayesian PCA", NIPS
    2012). The noise is taken to be Gaussian with one variance. The free energy depends on this
    variance alone and may have several minima: a scan brackets the deepest, and golden section
    search refines it.

    Args:
        energies: The min(m, n) squared singular values, from the largest down; not all 0.
        shape: (m, n).
    """
    small, large = min(shape), max(shape)
    alpha = small / large
    tau = 2.5129 * math.sqrt(alpha)
    # In units of large * variance, this is the energy from which a direction is signal.
    threshold = (1.0 + tau) * (1.0 + alpha / tau)
    scaled = np.maximum(energies, 0.0) / large

    def free_energy(log_variance: float) -> float:
        x = scaled / math.exp(log_variance)
        signal = x[x > threshold]
        shrunk = signal - (1.0 + alpha)
        t = 0.5 * (shrunk + np.sqrt(shrunk**2 - 4.0 * alpha))
        gain = np.log(t + 1.0) + alpha * np.log(t / alpha + 1.0) - t
        # Instead of -log(x), whose other part does not depend on the variance: x may be 0.
        return float(small * log_variance + x.sum() + gain.sum())

    # The part of the directions that can be signal is limited; the rest bounds the variance.
    most = math.ceil(small / (1.0 + alpha)) - 1
    upper = float(scaled.sum()) / small
    lower = max(scaled[most] / threshold, float(scaled[most:].mean()), LEAST_NOISE * upper)
    variance = math.exp(_minimum(free_energy, math.log(lower), math.log(upper)))
    return int(np.count_nonzero(scaled > threshold * variance))


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns the argument at which a function of one variable is smallest."""
    points = np.linspace(low, high, 101)
    best = int(np.argmin([function(float(point)) for point in points]))
    low, high = float(points[max(0, best - 1)]), float(points[min(100, best + 1)])
    for _ in range(30):
        step = GOLDEN_RATIO * (high - low)
        left, right = high - step, low + step
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def _check_between_0_and_1(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise RecipeError(f"The {name} must be between 0 and 1. Received: {value}.")


def _percent(part: float) -> str:
    """Formats a part as a percentage, rounded down: only all is 100 %."""
    return f"{math.floor(part * 1000 + 1e-9) / 10} %"
