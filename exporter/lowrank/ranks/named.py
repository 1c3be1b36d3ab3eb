"""Finds the policy that a rank or an energy stands for."""

from collections.abc import Callable, Mapping

from exporter.lowrank.ranks.automatic import EnergyRank, FractionRank, StableRank, VbmfRank
from exporter.lowrank.ranks.policy import (
    FixedRank,
    FullRank,
    RankByLayer,
    RankPolicy,
    WholeLayers,
)
from exporter.options.groups import Goal
from exporter.options.rank import NO_RANK

_NAMED: dict[str, Callable[[], RankPolicy]] = {
    NO_RANK: WholeLayers,
    "full": FullRank,
    "stable": StableRank,
    "vbmf": VbmfRank,
    "auto": VbmfRank,
}


def policy_for(goal: Goal) -> RankPolicy | None:
    """Returns the policy that a rank or an energy stands for; None for a budget."""
    rank = goal.rank
    if goal.energy is not None:
        return EnergyRank(goal.energy)
    if rank is None:
        return None
    if isinstance(rank, Mapping):
        return RankByLayer(rank)
    if isinstance(rank, str):
        return _NAMED[rank]()
    return FractionRank(rank) if isinstance(rank, float) else FixedRank(rank)
