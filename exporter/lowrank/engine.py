"""Factorizes one model by any plan; moments and error curves are computed once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count, pairwise
from typing import Any

import numpy as np

from exporter.graph.calls import of_one_sample
from exporter.graph.channels import ChannelPlan
from exporter.graph.fold import fold_batch_norms
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Model, Variable
from exporter.graph.walk import own_weights
from exporter.lowrank.calibration import Calibration, thinned
from exporter.lowrank.candidates import Candidate, candidates
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Floats, Moments
from exporter.lowrank.linalg.truncation import Truncation
from exporter.lowrank.ranks.policy import LayerPlan, RankPlan, RankPolicy
from exporter.lowrank.statistics import Cascade, gather
from exporter.options.groups import Cut
from exporter.progress import Logged, Progress
from exporter.screen import fits_screen

MAX_STAGES = 8
"""Most passes over the data in a cascade; deep models have several layers in each."""


@dataclass(frozen=True)
class Factors:
    """The factors of one kernel.

    Attributes:
        weights: Weights of the compressed model, in the order in which they are applied.
        matrices: Rows and columns of each factor as a matrix.
        replaced: Rows and columns of the kernel.
        rank: The rank r.
        discarded_energy: The part of the squared norm that is left out, 0 to 1: of the kernel, or
            of its outputs on calibration data, with the losses of earlier layers.
        relative_error: The square root of ``discarded_energy``.
        data_aware: Whether the kernel was factorized by calibration data.
    """

    weights: tuple[Variable, ...]
    matrices: tuple[tuple[int, int], ...]
    replaced: tuple[int, int]
    rank: int
    discarded_energy: float
    relative_error: float
    data_aware: bool

    @property
    def is_plain_pair(self) -> bool:
        """Whether they are two matrices whose product is the kernel as a matrix."""
        rows, columns = self.replaced
        inner = self.matrices[0][1]
        return self.matrices == ((rows, inner), (inner, columns))


@fits_screen
@dataclass(frozen=True)
class Compressed:
    """A model in which thin factors replace some kernels.

    Attributes:
        network: The compressed model.
        plan: The plan of every layer with weights.
        factors: The factors of each factorized kernel, by its name in the plan.
        cut: How the kernels were factorized.
        channels: Which channels were removed before, by group; empty if none was to be.
    """

    network: Network
    plan: RankPlan
    factors: Mapping[str, Factors]
    cut: Cut = field(default_factory=Cut)
    channels: tuple[ChannelPlan, ...] = ()

    @classmethod
    def of(cls, model: "Compressed | Network | Model") -> "Compressed":
        """Returns a model as one in which nothing is factorized, unless it is compressed already.

        Raises:
            ModelError: If its graph cannot be rewritten.
        """
        return model if isinstance(model, cls) else cls(Network.of(model), RankPlan(()), {})

    @property
    def model(self) -> Model:
        """The compressed model: an ordinary Keras model, which saves, loads and trains."""
        return self.network.model

    @property
    def is_whole(self) -> bool:
        """Whether nothing was factorized or removed."""
        return not self.factors and all(each.after == each.before for each in self.channels)

    @property
    def latent(self) -> frozenset[str]:
        """Paths of the layers that compute what another factor of the same kernel takes."""
        heads = {id(w) for each in self.factors.values() for w in each.weights[:-1]}
        tails = {id(each.weights[-1]) for each in self.factors.values()}
        own = {path: {*map(id, own_weights(x))} for path, x in self.network.layers.items()}
        return frozenset(path for path, ids in own.items() if ids & heads and not ids & tails)

    def copy(self, replacements: Mapping[str, Replacement] | None = None) -> "Compressed":
        """Returns a copy with weights of its own, made under the current strategy.

        Args:
            replacements: By the path of each layer to replace, a chain whose first layer's first
                weights correspond to the weights of that layer.
        """
        replacements = replacements or {}
        network = self.network.rewrite(replacements)
        heads = {path: replacement.layers[0] for path, replacement in replacements.items()}
        copies = {**network.layers, **heads}
        twins = {
            id(original): twin
            for path, layer in self.network.layers.items()
            for original, twin in zip(own_weights(layer), own_weights(copies[path]), strict=False)
        }
        factors = {
            name: replace(each, weights=tuple(twins[id(weight)] for weight in each.weights))
            for name, each in self.factors.items()
        }
        return replace(self, network=network, factors=factors)


class Engine:
    """Plans and factorizes one model.

    Attributes:
        baseline: The model that the compressed one is held against, and taught by.
        original: The same without the channels that were removed.
        network: The model that is factorized: the original, or its folded copy.
        folded: The path of the layer that each batch normalisation was folded into, by the path of
            the normalisation in the original.
        candidates: Its kernels and other layers with weights.
        calibration: Calibration data; None if kernels are factorized by their weights.
    """

    def __init__(
        self,
        network: Network,
        calibration: Calibration | None = None,
        cut: Cut | None = None,
        progress: Progress | None = None,
        *,
        seed: int = 0,
        baseline: Network | None = None,
        channels: tuple[ChannelPlan, ...] = (),
    ) -> None:
        """Folds batch normalisations; nothing else is computed before it is needed.

        Args:
            network: The original; it is not changed.
            calibration: Calibration data, of which as many as the kernels need are used; the method
                ``"svd"`` leaves them aside.
            cut: How kernels are factorized.
            progress: Is told of passes over the data and of each kernel.
            seed: Seed of the labels that ``"kfac"`` samples.
            baseline: The model that channels were removed from; None if the network has them all.
            channels: What was removed.

        Raises:
            ModelError: If a layer cannot be copied from its configuration.
        """
        self.cut, self.seed = cut or Cut(), seed
        self._progress = progress or Logged()
        self.original = self.network = network
        self.baseline, self._channels = baseline or network, channels
        self.folded: dict[str, str] = {}
        if self.cut.fold:
            self.network, self.folded = fold_batch_norms(network)
        with of_one_sample(self.network.calls):
            self.candidates = self._candidates(self.network)
        self._kept: list[Mapping[str, Any]] = []
        self.calibration = None
        if calibration is not None and self.cut.method != "svd":
            kernels = _kernels(self.candidates).values()
            self.calibration = thinned(calibration, self.network, kernels)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the original model, by candidate name, in the order of the calls."""
        if self.calibration is None:
            return {}
        seed = None if self.cut.method == "whitened" else self.seed
        with self._progress.track("Calibrating", self.calibration.batch_count) as advance:
            done = count(1)
            return gather(
                self.network,
                {name: k for name, k in _kernels(self.candidates).items() if k.data_aware},
                self.calibration,
                seed=seed,
                kept=self._kept,
                advance=lambda: advance(next(done), ""),
            )

    @cached_property
    def curves(self) -> dict[str, Floats]:
        """The error curve of every kernel, by candidate name."""
        return {
            name: kernel.error_curve(self.moments.get(name))
            for name, kernel in _kernels(self.candidates).items()
        }

    def plan(self, policy: RankPolicy) -> RankPlan:
        """Has a policy choose the ranks; raises RecipeError if it is impossible for this model."""
        plan = policy.select(self.candidates, self.curves if policy.needs_curves else None)
        if not self.folded:
            return plan
        after = {layer.name: layer for layer in plan.layers}
        with of_one_sample(self.original.calls):
            originals = self._candidates(self.original)
        return RankPlan(tuple(self._with_folded(c, after) for c in originals))

    def factorize(self, plan: RankPlan) -> Compressed:
        """Factorizes by a plan; raises ModelError if a weight is not finite."""
        chosen = [c for c in self.candidates if c.name in plan.ranks]
        truncations: dict[str, Truncation] = {}
        replacements: dict[str, Replacement] = {}
        with self._progress.track("Factorizing", len(chosen)) as advance:
            for stage, moments in self._stages(chosen, replacements):
                for name, kernel in _kernels(stage).items():
                    truncations[name] = kernel.truncate(
                        plan.ranks[name], moments.get(name), merge=self.cut.merge
                    )
                    advance(len(truncations), name)
                replacements |= build_replacements(stage, truncations)
        return self._assemble(plan, chosen, truncations, replacements)

    def assemble(self, plan: RankPlan, truncations: Mapping[str, Truncation]) -> Compressed:
        """Builds the compressed model from the factors of each kernel in the plan."""
        chosen = [c for c in self.candidates if c.name in truncations]
        return self._assemble(plan, chosen, truncations, build_replacements(chosen, truncations))

    def _assemble(
        self,
        plan: RankPlan,
        chosen: Iterable[Candidate],
        truncations: Mapping[str, Truncation],
        replacements: Mapping[str, Replacement],
    ) -> Compressed:
        factors = {}
        for candidate in chosen:
            name, kernel = candidate.name, candidate.kernel
            if kernel is not None:
                shapes = (matrix.shape for matrix in truncations[name].matrices)
                factors[name] = Factors(
                    weights=replacements[candidate.path].factors[kernel.name],
                    matrices=tuple((a, g * b) for g, a, b in shapes),
                    replaced=(kernel.m, kernel.groups * kernel.n),
                    rank=plan.ranks[name],
                    discarded_energy=truncations[name].discarded_energy,
                    relative_error=truncations[name].relative_error,
                    data_aware=self.calibration is not None and kernel.data_aware,
                )
        network = self.network.rewrite(replacements)
        return Compressed(network, plan, factors, self.cut, self._channels)

    def _candidates(self, network: Network) -> list[Candidate]:
        return candidates(network, merge=self.cut.merge, convolution=self.cut.convolution)

    def _with_folded(self, before: Candidate, after: Mapping[str, LayerPlan]) -> LayerPlan:
        """Returns the plan of a layer of the original, which folding may have changed."""
        if before.path in self.folded:
            return LayerPlan(
                name=before.name,
                kind=before.kind,
                reason=f"folded into {self.folded[before.path]}",
                params_before=before.params(),
                params_after=0,
            )
        return replace(after[before.name], params_before=before.params())

    def _stages(
        self, chosen: Sequence[Candidate], replacements: Mapping[str, Replacement]
    ) -> Iterator[tuple[Sequence[Candidate], Mapping[str, Moments]]]:
        """Yields the kernels in groups, in the order of the calls, with moments; layers stay whole.

        In a cascade, the replacements of a group have to be there when the next one is asked for.
        """
        if not chosen:
            return
        if self.calibration is None or not self.cut.cascade:
            yield chosen, self.moments
            return
        order = {name: number for number, name in enumerate(self.moments)}
        layers = list(_by_path(sorted(chosen, key=lambda c: order.get(c.name, -1))).values())
        count = min(MAX_STAGES, len(layers))
        bounds = [len(layers) * k // count for k in range(count + 1)]
        stages = [list(chain(*layers[a:b])) for a, b in pairwise(bounds)]
        yield stages[0], self.moments
        cascade = Cascade(self.network, self.calibration, self.moments, self._kept)
        for number in range(1, count):
            calls = [(self.network.layers[path], each) for path, each in replacements.items()]
            yield stages[number], cascade.gather(stages[number:], calls)


def placeholder(
    kernel: Kernel, rank: int, rng: np.random.Generator, *, merge: bool = True
) -> Truncation:
    """Returns random factors of a kernel: size and speed of a model are those of the real ones.

    Random, for formats store equal constants once.
    """
    shapes = kernel.factor_shapes(rank, merge=merge)
    matrices = tuple(rng.normal(size=shape) / shape[1] ** 0.5 for shape in shapes)
    return Truncation(matrices, None, 0.0)


def build_replacements(
    chosen: Iterable[Candidate], truncations: Mapping[str, Truncation]
) -> dict[str, Replacement]:
    """Builds new layers for each path: a Keras layer remembers the graphs it was in."""
    replacements = {}
    for path, group in _by_path(chosen).items():
        factorizer, layer = group[0].factorizer, group[0].layer
        if factorizer is not None:
            parts = {c.kernel.name: truncations[c.name] for c in group if c.kernel is not None}
            replacements[path] = factorizer.replace(layer, parts)
    return replacements


def _by_path(chosen: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        groups.setdefault(candidate.path, []).append(candidate)
    return groups


def _kernels(chosen: Iterable[Candidate]) -> dict[str, Kernel]:
    return {c.name: c.kernel for c in chosen if c.kernel is not None}
