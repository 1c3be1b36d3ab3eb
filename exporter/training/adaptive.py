"""Divides the budget of a rank plan anew, by the loss that remains after training.

Training repairs nearly all of the truncation error in some layers, and little in others. So the
model is trained for a short time with all ranks wider than planned, and again for each kernel with
that kernel at a lower rank. The knapsack gets the loss *after* training as the cost of each rank.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.lowrank.candidates import Candidate, CostKind
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.linalg.truncation import Truncation
from exporter.lowrank.ranks.costs import most_useful, rank_grid
from exporter.lowrank.ranks.knapsack import Option, allocate
from exporter.lowrank.ranks.policy import Choice, Curves, RankByLayer, RankPlan, RankPolicy
from exporter.progress import Progress
from exporter.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exporter.training.distribution import from_first, is_chief

WIDER = 3
"""Multiple of its planned rank that each kernel has while another one is tried out."""

TRIED_PARTS = (0.5, 1.0)
"""Ranks that are tried out, as parts of the planned rank."""

NOISE = 0.005
"""Part of the loss by which two trainings differ by chance."""

SINGLE_RANKS = 64
"""All ranks up to this one are considered; above it, a grid of ranks."""

EXPONENTS = (0.5, 4.0)
"""Bounds of the exponent of the power law of loss and rank."""

DIVERGED = 1e30
"""Stands for the loss of a training that diverged."""


@dataclass(frozen=True)
class RankTrial:
    """The validation loss of a short training with one kernel at a lower rank than all others."""

    kernel: str
    rank: int
    loss: float


@dataclass(frozen=True)
class Adaptation:
    """Record of the choice of new ranks; each loss is a validation loss after a short training.

    Attributes:
        limit: The budget: the cost of the factors in the original plan.
        planned: Rank of each kernel in that plan.
        adapted: Rank after the trials; None leaves the kernel whole.
        wider_loss: Loss with all kernels wider than planned.
        adapted_loss: Loss at the new ranks, which are taken if it is less than ``planned_loss``.
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
        """Whether the new ranks are better than the planned ones."""
        return self.adapted_loss < self.planned_loss


class AdaptivePolicy(RankPolicy):
    """Minimizes the predicted loss after training, within the budget of a plan."""

    def __init__(
        self, plan: RankPlan, unit: CostKind, reference: float, trials: Sequence[RankTrial]
    ) -> None:
        """Sorts the trials by kernel; ``reference`` is the loss with all ranks wider."""
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
        limit = most_useful(kernel)
        ranks = {*range(1, SINGLE_RANKS + 1), *rank_grid(kernel), *(t.rank for t in tried)}
        losses: dict[int | None, float] = {None: 0.0}
        losses |= {r: scale * r**-exponent for r in sorted(ranks) if least <= r < limit}
        return [Option(candidate.cost(self._unit, r), loss, r) for r, loss in losses.items()]


@dataclass
class Trials:
    """Measures the loss of single kernels after training, and divides the budget of a plan anew.

    ``train`` trains a model for a short time, and returns its validation loss. ``file`` keeps the
    losses of all trials, to go on from; None keeps nothing.
    """

    engine: Engine
    plan: RankPlan
    unit: CostKind
    train: Callable[[Compressed], float]
    _: KW_ONLY
    strategy: Any
    progress: Progress
    file: Path | None
    _truncations: dict[tuple[str, int], Truncation] = field(default_factory=dict, init=False)
    _losses: list[float] = field(default_factory=list, init=False)

    def run(self) -> tuple[RankPlan, Adaptation]:
        """Runs all trials; returns the plan to train by, and the record of its choice."""
        planned, cuts = self.plan.ranks, tried_out(self.plan)
        wider = {
            c.name: min(WIDER * planned[c.name], c.kernel.full_rank)
            for c in self.engine.candidates
            if c.name in planned and c.kernel is not None
        }
        count = 1 + len(cuts) + 2
        known = self._known(count)
        with self.progress.track("Trying out ranks", count) as advance:

            def loss_at(ranks: Mapping[str, int], status: str) -> float:
                number = len(self._losses)
                advance(number, status)
                self._losses.append(known[number] if number < len(known) else self._tried(ranks))
                if self.file is not None and is_chief(self.strategy):
                    save_checkpoint(Checkpoint([], [], [], {"losses": self._losses}), self.file)
                return self._losses[-1]

            reference = loss_at(wider, "all ranks wider than planned")
            trials = [
                RankTrial(name, rank, loss_at({**wider, name: rank}, f"{name} at rank {rank}"))
                for name, rank in cuts
            ]
            plan = self.engine.plan(AdaptivePolicy(self.plan, self.unit, reference, trials))
            adaptation = Adaptation(
                unit=self.unit,
                limit=budget_of(self.plan, self.unit),
                planned=planned,
                adapted={name: plan.ranks.get(name) for name in planned},
                trials=tuple(trials),
                wider_loss=reference,
                planned_loss=loss_at(planned, "all ranks as planned"),
                adapted_loss=loss_at(plan.ranks, "all ranks anew"),
            )
            advance(count, "done")
        return plan if adaptation.taken else self.plan, adaptation

    def _tried(self, ranks: Mapping[str, int]) -> float:
        """Runs a trial; returns the first worker's loss in all workers."""
        loss = self.train(self._cut(ranks))
        finite = loss if math.isfinite(loss) else DIVERGED
        return float(from_first(self.strategy, [finite])[0])

    def _cut(self, ranks: Mapping[str, int]) -> Compressed:
        """Truncates each kernel as if all others were whole; training repairs the difference."""
        engine = self.engine
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
        """Returns the losses that the first worker has in its file."""
        chief = is_chief(self.strategy)
        file = self.file if chief else None
        losses = (file and load_checkpoint(file, _losses, self.progress)) or []
        del losses[count:]
        padded = np.array([*losses, *[0.0] * (count - len(losses))])
        number, shared = from_first(self.strategy, [len(losses), padded])
        return [float(loss) for loss in shared[: int(number)]]


def tried_out(plan: RankPlan) -> list[tuple[str, int]]:
    """Lists the trials of a plan as pairs of a kernel and its rank."""
    return [
        (name, tried)
        for name, rank in plan.ranks.items()
        for tried in sorted({max(1, round(part * rank)) for part in TRIED_PARTS})
    ]


def budget_of(plan: RankPlan, unit: CostKind) -> int:
    """Returns the cost of all factors in a plan."""
    cut = [layer for layer in plan.layers if layer.rank is not None]
    return sum((layer.params_after if unit == "params" else layer.macs_after) or 0 for layer in cut)


def _losses(checkpoint: Checkpoint) -> list[float]:
    """Reads the losses of trials; raises a ValueError if they are none."""
    losses = [float(loss) for loss in checkpoint.progress["losses"]]
    if not all(map(math.isfinite, losses)):
        raise ValueError("its losses are not finite.")
    return losses


def _power_law(trials: Sequence[RankTrial], reference: float) -> tuple[float, float]:
    """Fits ``scale * rank ** -exponent`` to the loss that a kernel's trials add to a reference."""
    least = max(NOISE * abs(reference), 1e-12)
    points = [(math.log(t.rank), math.log(max(least, t.loss - reference))) for t in trials]
    (x, y), (last_x, last_y) = points[0], points[-1]
    exponent = (y - last_y) / (last_x - x) if x != last_x else 1.0
    exponent = float(np.clip(exponent, *EXPONENTS))
    middle = sum(value + exponent * rank for rank, value in points) / len(points)
    return math.exp(middle), exponent
