"""Rank policies, which choose a rank for each kernel, and the plans that they make."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from exporter.errors import RecipeError, did_you_mean
from exporter.lowrank.candidates import Candidate, listing
from exporter.lowrank.linalg.moments import Floats

Curves = Mapping[str, Floats]
"""Squared error at every rank from 0 to the full one, by the candidate's name."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The plan of one kernel, or of a layer that cannot be factorized.

    Such a layer has no shape, rank, break-even rank or multiply-accumulates.

    Attributes:
        name: Name of the candidate.
        kind: Keras class name of the layer.
        shape: (m, n) of the matrix.
        rank: The rank of the factors; None if the layer stays as it is.
        break_even_rank: mn / (m + n).
        reason: Why this rank was chosen.
        params_before: Parameters of the layer, biases included.
        params_after: Parameters after factorization.
        macs_before: Multiply-accumulates of one call on one sample.
        macs_after: Multiply-accumulates after factorization.
    """

    name: str
    kind: str
    shape: tuple[int, int] | None = None
    rank: int | None = None
    break_even_rank: float | None = None
    reason: str
    params_before: int
    params_after: int
    macs_before: int | None = None
    macs_after: int | None = None


@dataclass(frozen=True)
class RankPlan:
    """The plans of all layers with weights, in the order of the model."""

    layers: tuple[LayerPlan, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer that is factorized, by name."""
        return {plan.name: plan.rank for plan in self.layers if plan.rank is not None}


class Choice(NamedTuple):
    """The rank of one kernel, or None to keep the layer as it is, and the reason."""

    rank: int | None
    reason: str


class RankPolicy(ABC):
    """Chooses a rank, or none, for each kernel.

    Attributes:
        needs_curves: Whether it reads error curves, which are costly to compute.
    """

    needs_curves: ClassVar[bool] = False

    def select(self, candidates: Sequence[Candidate], curves: Curves | None = None) -> RankPlan:
        """Returns the plan.

        Args:
            candidates: All candidates of a model.
            curves: Error curves of all candidates with a kernel, for policies that need them.

        Raises:
            RecipeError: If the policy is impossible for this model.
        """
        self.check(candidates)
        choices = self.choose(candidates, curves or {})

        def plan(candidate: Candidate) -> LayerPlan:
            kernel = candidate.kernel
            choice = Choice(None, candidate.note) if kernel is None else choices[candidate.name]
            return LayerPlan(
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

        return RankPlan(tuple(map(plan, candidates)))

    def check(self, candidates: Sequence[Candidate]) -> None:  # noqa: B027 - most refuse nothing
        """Raises RecipeError if the policy is impossible for this model."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """Returns the choice for each candidate that has a kernel, by name."""


class FixedRank(RankPolicy):
    """Takes one rank for all layers; a layer that would not get smaller stays dense."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a rank that is larger than every layer."""
        largest = max((c.kernel.full_rank for c in candidates if c.kernel), default=0)
        if largest and self.rank > largest:
            raise RecipeError(
                f"Rank must be at most {largest}, the smaller side of the largest layer. "
                f"Received: {self.rank}. Give a smaller one, or the rank 'none', which leaves all "
                f"layers whole. Layers: {listing(candidates)}."
            )

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {c.name: below_break_even(self.rank, c) for c in candidates}


class RankByLayer(RankPolicy):
    """Takes a rank for each named layer; the others stay dense."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = dict(ranks)

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses unknown names, layers of other kinds, and ranks larger than their layer."""
        by_name = {candidate.name: candidate for candidate in candidates}
        for name, rank in self.ranks.items():
            candidate, suggestion = by_name.get(name), ""
            if candidate is None:
                wrong = f"Unknown layer {name!r} in rank."
                suggestion = did_you_mean(name, [n for n, c in by_name.items() if c.kernel])
            elif candidate.kernel is None:
                wrong = f"Layer {name!r} is of kind {candidate.kind}, which is not factorized."
            elif rank > (full := candidate.kernel.full_rank):
                wrong = f"Rank of layer {name!r} must be at most {full}. Received: {rank}."
            else:
                continue
            raise RecipeError(f"{wrong} Layers: {listing(candidates)}.{suggestion}")

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {
            c.name: below_break_even(self.ranks[c.name], c)
            if c.name in self.ranks
            else Choice(None, "not named in rank")
            for c in candidates
        }


class WholeLayers(RankPolicy):
    """Leaves every layer as it is."""

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        return {c.name: Choice(None, "rank none was asked for") for c in candidates}


class FullRank(RankPolicy):
    """Takes the full rank of every layer: exact, larger than dense, for study."""

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        reason = "full rank was asked for; exact, not smaller"
        return {c.name: Choice(c.kernel.full_rank, reason) for c in candidates if c.kernel}


def below_break_even(rank: int, candidate: Candidate, reason: str = "") -> Choice:
    """Chooses a rank, for a reason, where it makes the layer smaller, and dense elsewhere."""
    if candidate.kernel is None:
        return Choice(None, candidate.note)
    limit = candidate.kernel.break_even_rank
    if rank >= limit:
        return Choice(None, f"rank {rank} reaches break-even {limit:.1f}")
    return Choice(rank, reason or f"below break-even {limit:.1f}")
