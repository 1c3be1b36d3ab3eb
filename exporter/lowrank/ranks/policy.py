"""Which layer gets which rank: one class a policy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from exporter.errors import RecipeError
from exporter.lowrank.candidates import Candidate, factorizable, listing
from exporter.lowrank.linalg.moments import Floats

Curves = Mapping[str, Floats]
"""Squared error at every rank from 0 to the full one, by the candidate's name."""


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: Path of the layer.
        kind: Its Keras class name.
        shape: (m, n) of the matrix; None if the layer cannot be factorized.
        rank: The rank of the factors; None if the layer stays as it is.
        break_even_rank: mn / (m + n); None if the layer cannot be factorized.
        reason: Why.
        params_before: Parameters of the layer, biases included.
        params_after: Parameters of what stands in for it.
        macs_before: Multiply-accumulates of one call on one sample; None if the layer cannot be
            factorized.
        macs_after: Those of what stands in for it.
    """

    name: str
    kind: str
    shape: tuple[int, int] | None
    rank: int | None
    break_even_rank: float | None
    reason: str
    params_before: int
    params_after: int
    macs_before: int | None
    macs_after: int | None


@dataclass(frozen=True)
class RankPlan:
    """What becomes of every layer with weights, in the order of the model."""

    layers: tuple[LayerPlan, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer that is factorized, by name."""
        return {plan.name: plan.rank for plan in self.layers if plan.rank is not None}


class Choice(NamedTuple):
    """What a policy chose for one kernel.

    Attributes:
        rank: None keeps the layer as it is.
        reason: Why.
    """

    rank: int | None
    reason: str


class RankPolicy(ABC):
    """Chooses a rank, or none, for each kernel.

    Attributes:
        needs_curves: Whether it looks at error curves; without them, nothing is computed.
    """

    needs_curves: ClassVar[bool] = False

    def select(self, candidates: Sequence[Candidate], curves: Curves | None = None) -> RankPlan:
        """Returns the plan.

        Args:
            candidates: What ``rewrite.candidates`` lists.
            curves: Error curves of all candidates with a kernel, for policies that need them.

        Raises:
            RecipeError: If what was asked for is impossible for this model.
        """
        self.check(candidates)
        return plan_from(candidates, self.choose(factorizable(candidates), curves or {}))

    def check(self, candidates: Sequence[Candidate]) -> None:  # noqa: B027 - most refuse nothing
        """Raises RecipeError if what was asked for is impossible for this model."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """Returns what becomes of each candidate; all of them have a kernel."""


def plan_from(candidates: Sequence[Candidate], choices: Mapping[str, Choice]) -> RankPlan:
    """Draws up the plan from what was chosen by candidate name."""
    plans = []
    for candidate in candidates:
        kernel = candidate.kernel
        choice = Choice(None, candidate.note) if kernel is None else choices[candidate.name]
        plans.append(
            LayerPlan(
                name=candidate.name,
                kind=candidate.kind,
                shape=None if kernel is None else (kernel.m, kernel.n),
                rank=choice.rank,
                break_even_rank=None if kernel is None else kernel.break_even_rank,
                reason=choice.reason,
                params_before=candidate.params(),
                params_after=candidate.params(choice.rank),
                macs_before=candidate.macs(),
                macs_after=candidate.macs(choice.rank),
            )
        )
    return RankPlan(tuple(plans))


class FixedRank(RankPolicy):
    """One rank for all layers; a layer that it would not make smaller stays dense."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a rank that is larger than every layer."""
        largest = max((c.kernel.full_rank for c in candidates if c.kernel), default=0)
        if largest and self.rank > largest:
            raise RecipeError(
                f"Rank must be at most {largest}, the smaller side of the largest layer. "
                f"Received: {self.rank}. Layers: {listing(candidates)}."
            )

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {c.name: below_break_even(self.rank, c) for c in candidates}


class RankByLayer(RankPolicy):
    """A rank for each named layer; the others stay dense."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = dict(ranks)

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses unknown names, layers of other kinds, and ranks larger than their layer."""
        by_name = {candidate.name: candidate for candidate in candidates}
        for name, rank in self.ranks.items():
            candidate = by_name.get(name)
            if candidate is None:
                raise RecipeError(f"Unknown layer {name!r} in rank. Layers: {listing(candidates)}.")
            if candidate.kernel is None:
                raise RecipeError(
                    f"Layer {name!r} is of kind {candidate.kind}, which is not factorized. "
                    f"Layers: {listing(candidates)}."
                )
            full = candidate.kernel.full_rank
            if rank > full:
                raise RecipeError(
                    f"Rank of layer {name!r} must be at most {full}. Received: {rank}. "
                    f"Layers: {listing(candidates)}."
                )

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {
            c.name: below_break_even(self.ranks[c.name], c)
            if c.name in self.ranks
            else Choice(None, "not named in rank")
            for c in candidates
        }


class FullRank(RankPolicy):
    """Every layer at its full rank: exact, larger than dense, for study (the notebook's Dfull)."""

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        reason = "full rank was asked for; exact, not smaller"
        return {c.name: Choice(c.kernel.full_rank, reason) for c in candidates if c.kernel}


def below_break_even(rank: int, candidate: Candidate, reason: str = "") -> Choice:
    """Chooses a rank where it makes the layer smaller, and dense where it does not.

    Args:
        rank: The rank.
        candidate: Has a kernel.
        reason: Why this rank; by default, that it is below break-even.
    """
    if candidate.kernel is None:
        return Choice(None, candidate.note)
    limit = candidate.kernel.break_even_rank
    if rank >= limit:
        return Choice(None, f"rank {rank} reaches break-even {limit:.1f}")
    return Choice(rank, reason or f"below break-even {limit:.1f}")
