"""The compressed model and how it came about."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from exporter.lowrank.factorizers import Replacement
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.moments import Array, Moments
from exporter.lowrank.ranks import Candidate, FixedRank, FullRank, RankByLayer, RankPlan, RankPolicy
from exporter.lowrank.rewrite import candidates, check_rewritable, rewrite
from exporter.lowrank.statistics import Calibration, gather, gather_gradients
from exporter.lowrank.truncation import Truncation
from exporter.recipe import Rank, Recipe

Method = Literal["svd", "whitened", "kfac"]

MAX_STAGES = 8
"""Passes over the data that a cascade makes; deep models have several layers in each."""


@dataclass(frozen=True)
class Factors:
    """What stands in for one kernel.

    Attributes:
        weights: The weights of the compressed model, in the order in which they are applied.
        rank: The rank r.
        discarded_energy: The part of the squared error norm that is left out, 0 to 1: of the
            kernel, or of its outputs if it was cut by calibration data.
        relative_error: Its square root.
        data_aware: Whether it was cut by calibration data.
    """

    weights: tuple[Any, ...]
    rank: int
    discarded_energy: float
    relative_error: float
    data_aware: bool


@dataclass(frozen=True)
class Compressed:
    """A model in which thin factors stand in for some layers.

    Attributes:
        model: An ordinary Keras model; it saves, loads and trains.
        plan: What became of every layer with weights, and why.
        factors: What stands in for each factorized kernel, by its name in the plan.
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
    calibration: Calibration | None = None,
    method: Method | None = None,
    cascade: bool = True,
    merge: bool = True,
    seed: int = 0,
    on_layer: Callable[[str], None] = lambda name: None,
) -> Compressed:
    """Factorizes the layers of a Keras model.

    A kernel K (m x n) becomes two factors, m x r and r x n; the second one keeps bias and
    activation. A layer that the rank would not make smaller, ``rank >= mn / (m + n)``, stays dense.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        rank: One rank for all layers, ``"full"``, or ranks by layer name.
        calibration: Inputs; the factors are then those that change the layers' outputs the least.
        method: ``"svd"`` looks at the weights alone, ``"whitened"`` at the outputs of the layers as
            well, ``"kfac"`` at the loss gradient too. None is ``"kfac"`` with calibration data and
            ``"svd"`` without.
        cascade: Whether later layers make up for the errors of earlier ones; needs calibration
            data.
        merge: Whether S is merged into U. False keeps it as a layer of its own.
        seed: Of the labels that ``"kfac"`` samples.
        on_layer: Is told the path of each layer once it is factorized.

    Returns:
        The compressed model with its plan.

    Raises:
        ModelError: If the model's graph cannot be rewritten, or a weight is not finite.
        RecipeError: If the rank does not fit the model.
    """
    Recipe(rank=rank, merge=merge)  # Raises if the rank is none.
    plan = plan_ranks(model, rank, merge=merge)
    engine = Engine(model, calibration, method, cascade=cascade, merge=merge, seed=seed)
    return engine.carry_out(plan, on_layer)


class Engine:
    """Factorizes one model by any plan; what does not depend on the plan is computed once."""

    def __init__(
        self,
        model: Any,
        calibration: Calibration | None = None,
        method: Method | None = None,
        *,
        cascade: bool = True,
        merge: bool = True,
        seed: int = 0,
    ) -> None:
        """See ``compress``."""
        self.model = model
        self.candidates = candidates(model, merge=merge)
        self._merge = merge
        self._calibration = None if method == "svd" else calibration
        self._cascade = cascade and self._calibration is not None
        self._moments: dict[str, Moments] | None = None
        self._weighted, self._seed = method != "whitened", seed

    @property
    def moments(self) -> dict[str, Moments]:
        """Moments of the original model, by candidate name, in the order of the calls."""
        if self._moments is None:
            self._moments = self._gather()
        return self._moments

    def curves(self) -> dict[str, Array]:
        """Returns the error curve of every kernel, by candidate name."""
        return {
            c.name: c.kernel.error_curve(self.moments.get(c.name))
            for c in self.candidates
            if c.kernel is not None
        }

    def carry_out(
        self, plan: RankPlan, on_layer: Callable[[str], None] = lambda name: None
    ) -> Compressed:
        """Factorizes by a plan."""
        chosen = {c.name: c for c in self.candidates if c.name in plan.ranks}
        truncations: dict[str, Truncation] = {}
        for stage in self._stages(list(chosen.values())):
            moments = self._moved_moments(chosen, stage, truncations)
            for candidate in stage:
                truncations[candidate.name] = _kernel(candidate).truncate(
                    plan.ranks[candidate.name], moments.get(candidate.name), merge=self._merge
                )
                on_layer(candidate.name)
        replacements = _replacements(chosen.values(), truncations)
        factors = {
            name: Factors(
                weights=replacements[candidate.path].factors[_kernel(candidate).name],
                rank=plan.ranks[name],
                discarded_energy=truncations[name].discarded_energy,
                relative_error=truncations[name].relative_error,
                data_aware=name in self.moments and _kernel(candidate).data_aware,
            )
            for name, candidate in chosen.items()
        }
        return Compressed(rewrite(self.model, replacements), plan, factors)

    def _gather(self) -> dict[str, Moments]:
        if self._calibration is None:
            return {}
        kernels = _data_aware_kernels(self.candidates)
        gradients = None
        if self._weighted:
            gradients = gather_gradients(self.model, kernels, self._calibration, seed=self._seed)
        return gather(self.model, kernels, self._calibration, gradients=gradients)

    def _stages(self, chosen: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """Cuts the kernels into groups, in the order of the calls; a layer is never torn apart."""
        if not self._cascade:
            yield list(chosen)
            return
        order = {name: number for number, name in enumerate(self.moments)}
        by_layer: dict[str, list[Candidate]] = {}
        for candidate in sorted(chosen, key=lambda c: order.get(c.name, -1)):
            by_layer.setdefault(candidate.path, []).append(candidate)
        layers = list(by_layer.values())
        count = min(MAX_STAGES, len(layers))
        for number in range(count):
            start, stop = (len(layers) * k // count for k in (number, number + 1))
            yield [candidate for layer in layers[start:stop] for candidate in layer]

    def _moved_moments(
        self,
        chosen: Mapping[str, Candidate],
        stage: Sequence[Candidate],
        truncations: Mapping[str, Truncation],
    ) -> Mapping[str, Moments]:
        """Returns the moments of a stage where what comes before it is compressed."""
        if self._calibration is None or not self._cascade or not truncations:
            return self.moments
        done = [candidate for name, candidate in chosen.items() if name in truncations]
        moved = rewrite(self.model, _replacements(done, truncations))
        gradients = {
            name: moments.gradient
            for name, moments in self.moments.items()
            if moments.gradient is not None
        }
        return gather(
            self.model,
            _data_aware_kernels(stage),
            self._calibration,
            moved=moved,
            moved_kernels=_data_aware_kernels(candidates(moved)),
            gradients=gradients,
        )


def _data_aware_kernels(chosen: Sequence[Candidate]) -> dict[str, Kernel]:
    return {c.name: c.kernel for c in chosen if c.kernel is not None and c.kernel.data_aware}


def _kernel(candidate: Candidate) -> Kernel:
    if candidate.kernel is None:
        raise ValueError(f"{candidate.name} has no kernel.")
    return candidate.kernel


def _replacements(
    chosen: Sequence[Candidate] | Any, truncations: Mapping[str, Truncation]
) -> dict[str, Replacement]:
    """Builds what stands in for each layer, anew: a layer belongs to one graph."""
    by_path: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        by_path.setdefault(candidate.path, []).append(candidate)
    replacements = {}
    for path, group in by_path.items():
        factorizer, layer = group[0].factorizer, group[0].layer
        if factorizer is not None:
            parts = {_kernel(c).name: truncations[c.name] for c in group}
            replacements[path] = factorizer.replace(layer, parts)
    return replacements
