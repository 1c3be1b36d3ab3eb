"""Ranks that training makes the most of: as many parameters, divided by what is left of each loss.

What the cut of a kernel loses does not tell what it costs in the end: training makes good nearly
all of it in some layers, and little in others. So it is tried out. The model is trained for a short
time with more rank than it may keep, and again for each kernel with that one cut further. What is
left of each loss *after* training goes into the knapsack, in the place of what the cut loses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.lowrank.candidates import Candidate, CostKind
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.linalg.truncation import Truncation
from exporter.lowrank.ranks.budgeted import rank_grid
from exporter.lowrank.ranks.knapsack import Option, allocate
from exporter.lowrank.ranks.policy import Choice, Curves, RankByLayer, RankPlan, RankPolicy
from exporter.progress import Progress
from exporter.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exporter.training.distribution import from_first, is_chief

WIDER = 3
"""How many times its planned rank each kernel has while another one is cut further."""

TRIED_PARTS = (0.5, 1.0)
"""Ranks that are tried out, as parts of the planned one."""

NOISE = 0.005
"""Part of the loss that two trainings differ by in any case."""

SINGLE_RANKS = 64
"""Up to this one all ranks are considered: where there are few to share out, each one counts."""

EXPONENTS = (0.5, 4.0)
"""Bounds of how the loss falls with the rank."""

DIVERGED = 1e30
"""Stands for the loss of a training that diverged."""


@dataclass(frozen=True)
class RankTrial:
    """A short training.

    Attributes:
        kernel: The one that was cut further than all others.
        rank: Its rank.
        loss: On the validation data, at the end.
    """

    kernel: str
    rank: int
    loss: float


@dataclass(frozen=True)
class Adaptation:
    """How the ranks came about.

    Attributes:
        unit: What the budget counts: ``"params"`` or ``"macs"``.
        limit: The budget, which is what the plan of the cut takes.
        planned: The rank of each kernel in that plan.
        adapted: Its rank after the trials; None is whole.
        trials: Of single kernels.
        wider_loss: On the validation data, after a training as short as the trials, with all
            kernels wider than planned.
        planned_loss: Likewise, as planned.
        adapted_loss: Likewise, at the new ranks. The ranks are kept as planned unless this is less.
    """

    unit: CostKind
    limit: int
    planned: Mapping[str, int]
    adapted: Mapping[str, int | None]
    trials: tuple[RankTrial, ...]
    wider_loss: float
    planned_loss: float
    adapted_loss: float

    @property
    def taken(self) -> bool:
        """Whether the ranks were changed."""
        return self.adapted_loss < self.planned_loss


class AdaptivePolicy(RankPolicy):
    """The smallest loss that is predicted after training, for what a plan takes."""

    def __init__(
        self, plan: RankPlan, unit: CostKind, reference: float, trials: Sequence[RankTrial]
    ) -> None:
        """Takes what was measured.

        Args:
            plan: Sets the budget; only the kernels that it cuts may change.
            unit: What the budget counts.
            reference: The loss where no kernel is cut further than the others.
            trials: Of these kernels.
        """
        self._plan, self._unit, self._reference = plan, unit, reference
        self._tried = {name: [t for t in trials if t.kernel == name] for name in plan.ranks}

    def choose(self, candidates: Sequence[Candidate], curves: Curves) -> dict[str, Choice]:
        """See the base class."""
        options = {c.name: self._options(c) for c in candidates if c.name in self._tried}
        taken = allocate(options, budget_of(self._plan, self._unit))
        choices = {layer.name: Choice(None, layer.reason) for layer in self._plan.layers}
        for name, option in taken.items():
            planned = self._plan.ranks[name]
            what = "whole" if option.rank is None else f"rank {option.rank}"
            choices[name] = Choice(option.rank, f"adaptive: {what} in the place of rank {planned}")
        return choices

    def _options(self, candidate: Candidate) -> list[Option]:
        kernel = candidate.kernel
        if kernel is None:
            return []
        tried = self._tried[candidate.name]
        scale, exponent = _power_law(tried, self._reference)
        # Below the lowest rank that was tried, nothing is known.
        least = min(t.rank for t in tried)
        limit = min(kernel.break_even_rank, kernel.full_rank + 1)
        ranks = {*range(1, SINGLE_RANKS + 1), *rank_grid(kernel), *(t.rank for t in tried)}
        losses = {r: scale * r**-exponent for r in sorted(ranks) if least <= r < limit}
        return [
            Option(self._cost(candidate, None), 0.0, None),
            *(Option(self._cost(candidate, rank), loss, rank) for rank, loss in losses.items()),
        ]

    def _cost(self, candidate: Candidate, rank: int | None) -> int:
        return candidate.params(rank) if self._unit == "params" else candidate.macs(rank) or 0


class Trials:
    """Tries out what single kernels cost after training, and divides the budget anew."""

    def __init__(
        self,
        engine: Engine,
        plan: RankPlan,
        unit: CostKind,
        train: Callable[[Compressed], float],
        *,
        strategy: Any,
        progress: Progress,
        file: Path | None,
    ) -> None:
        """Prepares, without a trial.

        Args:
            engine: Of the baseline.
            plan: Sets the budget.
            unit: What the budget counts.
            train: Trains a model for a short time, and returns its loss on the validation data.
            strategy: Of ``tf.distribute``.
            progress: Is told of each trial.
            file: Where what was measured is kept, to go on from; None keeps nothing.
        """
        self._engine, self._plan, self._unit, self._train = engine, plan, unit, train
        self._strategy, self._progress, self._file = strategy, progress, file
        self._truncations: dict[tuple[str, int], Truncation] = {}
        self._losses: list[float] = []

    def run(self) -> tuple[RankPlan, Adaptation]:
        """Returns the plan to train by, and how it came about."""
        planned, cuts = self._plan.ranks, tried_out(self._plan)
        wider = {c.name: self._wider(c) for c in self._engine.candidates if c.name in planned}
        count = 1 + len(cuts) + 2
        known = self._known(count)
        with self._progress.track("Trying out ranks", count) as advance:

            def loss_at(ranks: Mapping[str, int], status: str) -> float:
                number = len(self._losses)
                advance(number, status)
                self._losses.append(known[number] if number < len(known) else self._tried(ranks))
                self._save()
                return self._losses[-1]

            reference = loss_at(wider, "all ranks wider than planned")
            trials = [
                RankTrial(name, rank, loss_at({**wider, name: rank}, f"{name} at rank {rank}"))
                for name, rank in cuts
            ]
            plan = self._engine.plan(AdaptivePolicy(self._plan, self._unit, reference, trials))
            adaptation = Adaptation(
                unit=self._unit,
                limit=budget_of(self._plan, self._unit),
                planned=planned,
                adapted={name: plan.ranks.get(name) for name in planned},
                trials=tuple(trials),
                wider_loss=reference,
                planned_loss=loss_at(planned, "all ranks as planned"),
                adapted_loss=loss_at(plan.ranks, "all ranks anew"),
            )
            advance(count, "done")
        return plan if adaptation.taken else self._plan, adaptation

    def _wider(self, candidate: Candidate) -> int:
        rank = WIDER * self._plan.ranks[candidate.name]
        return rank if candidate.kernel is None else min(rank, candidate.kernel.full_rank)

    def _tried(self, ranks: Mapping[str, int]) -> float:
        """Returns the loss of a trial, which is the first worker's in all of them."""
        loss = self._train(self._cut(ranks))
        finite = loss if math.isfinite(loss) else DIVERGED
        return float(from_first(self._strategy, [finite])[0])

    def _cut(self, ranks: Mapping[str, int]) -> Compressed:
        """Cuts each kernel as if all others were whole; training makes up for that."""
        engine = self._engine
        plan = engine.plan(RankByLayer(ranks))
        for candidate in engine.candidates:
            name, kernel = candidate.name, candidate.kernel
            rank = plan.ranks.get(name)
            if kernel is not None and rank is not None and (name, rank) not in self._truncations:
                self._truncations[name, rank] = kernel.truncate(
                    rank, engine.moments.get(name), merge=candidate.merge
                )
        return engine.assemble(plan, {n: self._truncations[n, r] for n, r in plan.ranks.items()})

    def _known(self, count: int) -> list[float]:
        """Returns the losses of the trials that the first worker knows already."""
        found = None
        if self._file is not None and is_chief(self._strategy):
            found = load_checkpoint(self._file)
        losses = [] if found is None else found.progress["losses"][:count]
        padded = np.array([*losses, *[0.0] * (count - len(losses))])
        number, shared = from_first(self._strategy, [len(losses), padded])
        return [float(loss) for loss in shared[: int(number)]]

    def _save(self) -> None:
        if self._file is not None and is_chief(self._strategy):
            save_checkpoint(Checkpoint([], [], [], {"losses": self._losses}), self._file)


def tried_out(plan: RankPlan) -> list[tuple[str, int]]:
    """Lists the kernels with the ranks that each of them is cut to, all others wider."""
    return [
        (name, tried)
        for name, rank in plan.ranks.items()
        for tried in sorted({max(1, round(part * rank)) for part in TRIED_PARTS})
    ]


def budget_of(plan: RankPlan, unit: CostKind) -> int:
    """Returns what the kernels that a plan cuts take together."""
    cut = [layer for layer in plan.layers if layer.rank is not None]
    if unit == "params":
        return sum(layer.params_after for layer in cut)
    return sum(layer.macs_after or 0 for layer in cut)


def _power_law(trials: Sequence[RankTrial], reference: float) -> tuple[float, float]:
    """Fits ``scale * rank ** -exponent`` to what a kernel's cut costs after training."""
    least = max(NOISE * abs(reference), 1e-12)
    points = [(math.log(t.rank), math.log(max(least, t.loss - reference))) for t in trials]
    (x, y), (last_x, last_y) = points[0], points[-1]
    exponent = (y - last_y) / (last_x - x) if x != last_x else 1.0
    exponent = float(np.clip(exponent, *EXPONENTS))
    middle = sum(value + exponent * rank for rank, value in points) / len(points)
    return math.exp(middle), exponent
