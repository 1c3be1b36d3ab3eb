"""What ranks cost: parameters, multiply-accumulates, or a figure that was measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

from exporter.lowrank.candidates import Candidate
from exporter.lowrank.kernels import Kernel

SMALL_RANKS = (1, 2, 3, 4, 6, 8, 12)
MAX_LARGE_RANKS = 30

SMALL_KERNEL = 64
"""Break-even rank up to which every rank is worth considering."""


def rank_grid(kernel: Kernel) -> tuple[int, ...]:
    """Lists the ranks below break-even that are worth considering, about 60 at most.

    Runtimes multiply in tiles, so a rank between two multiples of 8 takes as long as the higher
    one. The larger the rank, the less a small step changes.
    """
    limit = most_useful(kernel)
    if limit <= SMALL_KERNEL:  # What a step saves shows in the size, and hardly in the time.
        return tuple(range(1, math.ceil(limit)))
    stride = 32 * max(1, math.ceil((limit - 256) / (32 * MAX_LARGE_RANKS)))
    ranks = chain(
        SMALL_RANKS,
        range(16, 129, 8),
        range(144, 257, 16),
        range(256 + stride, math.ceil(limit), stride),
    )
    return tuple(rank for rank in ranks if rank < limit)


def most_useful(kernel: Kernel) -> float:
    """Returns the limit that useful ranks are below: they are exact from the full rank on."""
    return min(kernel.break_even_rank, kernel.full_rank + 1)


class Costs(ABC):
    """The costs of kernels at their ranks, in one unit.

    Attributes:
        unit: What is counted, in the plural.
    """

    unit: str

    @abstractmethod
    def of(self, candidate: Candidate, rank: int | None) -> int:
        """Returns the cost of a kernel at a rank that ``ranks`` lists; None is the whole kernel."""

    @abstractmethod
    def fixed(self, candidates: Sequence[Candidate]) -> int:
        """Returns the cost of all that has no kernel."""

    def ranks(self, candidate: Candidate) -> tuple[int, ...]:
        """Lists the ranks of a kernel that may be chosen."""
        return rank_grid(candidate.kernel) if candidate.kernel else ()

    def whole(self, candidates: Sequence[Candidate]) -> int:
        """Returns the cost of the model as it is."""
        return self.fixed(candidates) + sum(self.of(c, None) for c in candidates if c.kernel)

    def smallest(self, candidates: Sequence[Candidate]) -> int:
        """Returns the least that any choice of ranks costs."""
        return self.fixed(candidates) + sum(
            min(self.of(c, rank) for rank in (None, *self.ranks(c))) for c in candidates if c.kernel
        )


class ParamCosts(Costs):
    """Counts parameters."""

    unit = "parameters"

    def of(self, candidate: Candidate, rank: int | None) -> int:
        """See the base class."""
        return candidate.params(rank)

    def fixed(self, candidates: Sequence[Candidate]) -> int:
        """See the base class."""
        return sum(c.params() for c in candidates if c.kernel is None)


PARAMS = ParamCosts()


class MacCosts(Costs):
    """Counts multiply-accumulates of one sample."""

    unit = "multiply-accumulates"

    def __init__(self, fixed: int) -> None:
        """Takes the multiply-accumulates of all that has no kernel."""
        self._fixed = fixed

    def of(self, candidate: Candidate, rank: int | None) -> int:
        """See the base class."""
        return candidate.macs(rank) or 0

    def fixed(self, candidates: Sequence[Candidate]) -> int:
        """See the base class."""
        del candidates
        return self._fixed


class CheaperCosts(Costs):
    """Counts by other costs, and lists only the ranks that are cheaper than whole layers elsewhere.

    A budget of bytes or parameters is then never kept by what is slower on a target.
    """

    def __init__(self, costs: Costs, target: Costs) -> None:
        """Takes what is counted, and the costs on the target."""
        self.unit = costs.unit
        self._costs, self._target = costs, target

    def of(self, candidate: Candidate, rank: int | None) -> int:
        """See the base class."""
        return self._costs.of(candidate, rank)

    def fixed(self, candidates: Sequence[Candidate]) -> int:
        """See the base class."""
        return self._costs.fixed(candidates)

    def ranks(self, candidate: Candidate) -> tuple[int, ...]:
        """See the base class."""
        whole = self._target.of(candidate, None)
        ranks = self._target.ranks(candidate)
        return tuple(rank for rank in ranks if self._target.of(candidate, rank) < whole)
