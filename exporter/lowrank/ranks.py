"""Which layer gets which rank: one class a policy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.errors import RecipeError
from exporter.lowrank.factorizers import Factorizer


@dataclass(frozen=True)
class Candidate:
    """A layer with weights, as rank policies see it.

    Attributes:
        name: Path of the layer: the names of the nested models that hold it, and its own.
        kind: Its Keras class name.
        layer: The layer.
        factorizer: What can factorize it; None if nothing can.
        merge: Whether S would be merged into U.
    """

    name: str
    kind: str
    layer: Any
    factorizer: Factorizer | None
    merge: bool = True

    def params(self, rank: int | None = None) -> int:
        """Counts the parameters at a rank; None is the layer as it is."""
        if self.factorizer is None:
            return int(self.layer.count_params())
        return self.factorizer.params(self.layer, rank, merge=self.merge)

    def macs(self, rank: int | None = None) -> int | None:
        """Counts the multiply-accumulates at a rank; None if the layer cannot be factorized."""
        if self.factorizer is None:
            return None
        return self.factorizer.macs(self.layer, rank, merge=self.merge)


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


class RankPolicy(ABC):
    """Chooses a rank, or none, for each candidate."""

    def select(self, candidates: Sequence[Candidate]) -> RankPlan:
        """Returns the plan.

        Raises:
            RecipeError: If what was asked for is impossible for this model.
        """
        self.check(candidates)
        return RankPlan(tuple(self._plan(candidate) for candidate in candidates))

    @abstractmethod
    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raises RecipeError if what was asked for is impossible for this model."""

    @abstractmethod
    def _choose(self, candidate: Candidate, factorizer: Factorizer) -> tuple[int | None, str]:
        """Returns the rank, or None for dense, and the reason."""

    def _plan(self, candidate: Candidate) -> LayerPlan:
        factorizer = candidate.factorizer
        if factorizer is None:
            rank, reason = None, "this kind is not factorized"
        else:
            rank, reason = self._choose(candidate, factorizer)
        return LayerPlan(
            name=candidate.name,
            kind=candidate.kind,
            shape=factorizer.matrix_shape(candidate.layer) if factorizer else None,
            rank=rank,
            break_even_rank=factorizer.break_even_rank(candidate.layer) if factorizer else None,
            reason=reason,
            params_before=candidate.params(),
            params_after=candidate.params(rank),
            macs_before=candidate.macs(),
            macs_after=candidate.macs(rank),
        )


class FixedRank(RankPolicy):
    """One rank for all layers; a layer that it would not make smaller stays dense."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Refuses a rank that is larger than every layer."""
        largest = max(
            (c.factorizer.full_rank(c.layer) for c in candidates if c.factorizer is not None),
            default=0,
        )
        if largest and self.rank > largest:
            raise RecipeError(
                f"Rank must be at most {largest}, the smaller side of the largest layer. "
                f"Received: {self.rank}. Layers: {_listing(candidates)}."
            )

    def _choose(self, candidate: Candidate, factorizer: Factorizer) -> tuple[int | None, str]:
        return _below_break_even(self.rank, candidate, factorizer)


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
                raise RecipeError(
                    f"Unknown layer {name!r} in rank. Layers: {_listing(candidates)}."
                )
            if candidate.factorizer is None:
                raise RecipeError(
                    f"Layer {name!r} is of kind {candidate.kind}, which is not factorized. "
                    f"Layers: {_listing(candidates)}."
                )
            full = candidate.factorizer.full_rank(candidate.layer)
            if rank > full:
                raise RecipeError(
                    f"Rank of layer {name!r} must be at most {full}. Received: {rank}. "
                    f"Layers: {_listing(candidates)}."
                )

    def _choose(self, candidate: Candidate, factorizer: Factorizer) -> tuple[int | None, str]:
        rank = self.ranks.get(candidate.name)
        if rank is None:
            return None, "not named in rank"
        return _below_break_even(rank, candidate, factorizer)


class FullRank(RankPolicy):
    """Every layer at its full rank: exact, larger than dense, for study (the notebook's Dfull)."""

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Accepts every model."""

    def _choose(self, candidate: Candidate, factorizer: Factorizer) -> tuple[int | None, str]:
        return factorizer.full_rank(candidate.layer), "full rank was asked for; exact, not smaller"


def _below_break_even(
    rank: int, candidate: Candidate, factorizer: Factorizer
) -> tuple[int | None, str]:
    limit = factorizer.break_even_rank(candidate.layer)
    if rank >= limit:
        return None, f"rank {rank} reaches break-even {limit:.1f}"
    return rank, f"below break-even {limit:.1f}"


def _listing(candidates: Sequence[Candidate]) -> str:
    shapes = []
    for candidate in candidates:
        if candidate.factorizer is None:
            continue
        m, n = candidate.factorizer.matrix_shape(candidate.layer)
        shapes.append(f"{candidate.name} ({m} x {n})")
    return ", ".join(shapes) or "none can be factorized"
