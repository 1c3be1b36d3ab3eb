"""Finds the policy that a rank or an energy stands for."""

from collections.abc import Callable, Mapping

from exporter.lowrank.ranks.automatic import EnergyRank, FractionRank, StableRank, VbmfRank
from exporter.lowrank.ranks.policy import FixedRank, FullRank, RankByLayer, RankPolicy
from exporter.recipe.recipe import Recipe

_NAMED: dict[str, Callable[[], RankPolicy]] = {
    "full": FullRank,
    "stable": StableRank,
    "vbmf": VbmfRank,
    "auto": VbmfRank,
}


def policy_for(recipe: Recipe) -> RankPolicy | None:
    """Returns the policy that a recipe's rank or energy stands for; None for a budget."""
    rank = recipe.rank
    if recipe.energy is not None:
        return EnergyRank(recipe.energy)
    if rank is None:
        return None
    if isinstance(rank, Mapping):
        return RankByLayer(rank)
    if isinstance(rank, str):
        return _NAMED[rank]()
    return FractionRank(rank) if isinstance(rank, float) else FixedRank(rank)
