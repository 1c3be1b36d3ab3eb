"""The compressed model and how it came about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.lowrank.factorizers import Factors
from exporter.lowrank.ranks import FixedRank, FullRank, RankByLayer, RankPlan, RankPolicy
from exporter.lowrank.rewrite import candidates, check_rewritable, rewrite
from exporter.recipe import Rank, Recipe


@dataclass(frozen=True)
class Compressed:
    """A model in which thin factors stand in for some layers.

    Attributes:
        model: An ordinary Keras model; it saves, loads and trains.
        plan: What became of every layer with weights, and why.
        factors: The factors of each factorized layer, by its path.
    """

    model: Any
    plan: RankPlan
    factors: Mapping[str, Factors]


def policy_for(rank: Rank) -> RankPolicy:
    """Returns the policy that a recipe's rank stands for."""
    if rank == "full":
        return FullRank()
    return RankByLayer(rank) if isinstance(rank, Mapping) else FixedRank(int(rank))


def plan_ranks(model: Any, rank: Rank, *, merge: bool = True) -> RankPlan:
    """Plans without computing, which finds out whether the rank fits the model.

    Raises:
        ModelError: If the model's graph cannot be rewritten.
        RecipeError: If the rank does not fit the model.
    """
    check_rewritable(model)
    return policy_for(rank).select(candidates(model, merge=merge))


def compress(
    model: Any,
    rank: Rank = 20,
    *,
    merge: bool = True,
    on_layer: Callable[[str], None] = lambda name: None,
) -> Compressed:
    """Factorizes the layers of a Keras model by truncated SVD.

    A kernel K (m x n) becomes (U S) (m x r) and Vt (r x n), the best rank-r approximation in the
    Frobenius norm; the second factor keeps bias and activation. A layer that the rank would not
    make smaller, ``rank >= mn / (m + n)``, stays dense.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        rank: One rank for all layers, ``"full"``, or ranks by layer name.
        merge: Whether S is merged into U. False keeps it as a layer of its own.
        on_layer: Is told the path of each layer once it is factorized.

    Returns:
        The compressed model with its plan.

    Raises:
        ModelError: If the model's graph cannot be rewritten, or a weight is not finite.
        RecipeError: If the rank does not fit the model.
    """
    Recipe(rank=rank, merge=merge)  # Raises if the rank is none.
    plan = plan_ranks(model, rank, merge=merge)
    factors: dict[str, Factors] = {}
    for candidate in candidates(model):
        chosen = plan.ranks.get(candidate.name)
        if chosen is not None and candidate.factorizer is not None:
            factors[candidate.name] = candidate.factorizer.factorize(
                candidate.layer, chosen, merge=merge
            )
            on_layer(candidate.name)
    chains = {name: factor.layers for name, factor in factors.items()}
    return Compressed(rewrite(model, chains), plan, factors)
