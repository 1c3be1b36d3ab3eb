"""Removes the channels of a network that its loss misses least."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import prod

import numpy as np

from exporter.errors import RecipeError
from exporter.graph.channels import (
    ChannelGraph,
    ChannelPlan,
    Consumer,
    Group,
    Indices,
    output_positions,
)
from exporter.graph.layers import output_shape
from exporter.graph.network import Network
from exporter.graph.removal import remove_channels
from exporter.graph.separable import split_separable
from exporter.lowrank.calibration import Calibration, thinned
from exporter.lowrank.candidates import CostKind
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Moments
from exporter.lowrank.statistics import gather
from exporter.options.channels import FREE, ChannelPart
from exporter.progress import Logged, Progress
from exporter.pruning.allocation import Costs, Curve, allocate, levels
from exporter.pruning.elimination import Elimination, Taken, eliminate, ridged

FREE_ERROR = 1e-5
"""Channels are free that together cost no more than this part of what all of a group do."""


@dataclass(frozen=True)
class Pruned:
    """A network without some of its channels.

    Attributes:
        network: An ordinary Keras model with fewer units and filters.
        channels: What was removed, by group; those that are whole as well.
    """

    network: Network
    channels: tuple[ChannelPlan, ...]


class Pruner:
    """Weighs the channels of one network, and removes some."""

    def __init__(
        self,
        network: Network,
        calibration: Calibration | None,
        progress: Progress | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Follows the channels; nothing else is computed before it is needed.

        Args:
            network: The network; it is not changed.
            calibration: Calibration data; None weighs channels by the weights alone.
            progress: Is told of passes over the data.
            seed: Seed of the labels that the Fisher information is sampled by.
        """
        self._given, self._network = network, split_separable(network)
        self._progress, self._seed = progress or Logged(), seed
        self._graph = ChannelGraph(self._network)
        self._outputs = {c.path: _output_kernel(c) for c in self._graph.consumers}
        self._inputs = {c.path: _input_kernel(c) for c in self._graph.consumers}
        self._calibration = calibration and thinned(
            calibration, self._network, self._inputs.values()
        )

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        if self._calibration is None or not self._outputs:
            return {}
        kernels = {f"output/{path}": kernel for path, kernel in self._outputs.items()}
        kernels |= {f"input/{path}": kernel for path, kernel in self._inputs.items()}
        with self._progress.track("Weighing channels", self._calibration.batch_count) as advance:
            done = count(1)
            return gather(
                self._network,
                kernels,
                self._calibration,
                seed=self._seed,
                advance=lambda: advance(next(done), ""),
            )

    @cached_property
    def _taken(self) -> dict[str, Taken]:
        return {consumer.path: self._weigh(consumer) for consumer in self._graph.consumers}

    def _weigh(self, consumer: Consumer) -> Taken:
        kernel = consumer.kernel
        given = self._moments.get(f"input/{consumer.path}")
        outputs = self._moments.get(f"output/{consumer.path}")
        fisher = outputs.fisher.ridged[0] if outputs and outputs.fisher else None
        weighted = kernel if fisher is None else kernel @ fisher
        importance = np.einsum("pcn,pdn->cd", weighted, kernel, optimize=True)
        size = len(importance)
        if given is None:
            return Taken(np.zeros(size), np.eye(size), importance)
        return Taken(given.mean[0], ridged(given.scatter[0]), importance)

    @cached_property
    def _eliminations(self) -> list[Elimination]:
        groups, found = self._graph.groups, []
        known = self._taken
        with self._progress.track("Ordering channels", len(groups)) as advance:
            for number, group in enumerate(groups):
                takers = [
                    (known[consumer.path], _columns(consumer, group))
                    for consumer in self._graph.consumers
                    if np.isin(group.ids, consumer.lane.ids).any()
                ]
                found.append(eliminate(len(group.ids), takers))
                advance(number + 1, group.producers[0])
        return found

    def prune(self, part: ChannelPart, unit: CostKind = "params") -> Pruned:
        """Removes channels until a part of the network's cost is left.

        Args:
            part: That part, or ``"free"`` for those that cost nothing.
            unit: What is counted.

        Raises:
            RecipeError: If the network has no channels that can be removed, or too few.
        """
        groups, network = self._graph.groups, self._given
        if not groups:
            if part == FREE:
                return Pruned(network, ())
            raise RecipeError(
                f"channels {part!r}: model {network.name!r} has none that can be removed. Those of "
                "its outputs, and of layers that mix them, such as attention, have to stay."
            )
        if part != FREE:
            return self._without(self._within(float(part), unit))
        limits = ((e.errors, FREE_ERROR * e.errors[-1]) for e in self._eliminations)
        free = [int(np.searchsorted(errors, limit, "right")) - 1 for errors, limit in limits]
        # One channel stays, though none may ever fire.
        return self._without([max(1, len(g.ids) - n) for g, n in zip(groups, free, strict=True)])

    def _within(self, part: float, unit: CostKind) -> list[int]:
        curves = [
            Curve(counts, [float(e.errors[len(e.order) - kept]) for kept in counts])
            for e, counts in ((e, levels(len(e.order))) for e in self._eliminations)
        ]
        costs = Costs(self._network, self._graph, unit)
        kept = allocate(costs, curves, part * costs.whole)
        if kept is None:
            least = costs.of(np.array([curve.counts[-1] for curve in curves], float)) / costs.whole
            raise RecipeError(
                f"channels {part:g} cannot be reached: with the fewest channels, {least:.3f} of "
                f"the {unit} are left. Give more, or lower the ranks as well."
            )
        return kept

    def _without(self, kept: list[int]) -> Pruned:
        pairs = list(zip(self._graph.groups, self._eliminations, kept, strict=True))
        removed = {
            int(channel)
            for group, each, count in pairs
            for channel in group.ids[each.order[: len(group.ids) - count]]
        }
        refits = {}
        for consumer in self._graph.consumers:
            stays = np.flatnonzero([int(channel) not in removed for channel in consumer.lane.ids])
            if len(stays) < len(consumer.lane.ids):
                refits[consumer.path] = self._taken[consumer.path].refit(stays)
        network = self._given
        if removed:
            network = remove_channels(self._graph, self._network, removed, refits)
        return Pruned(
            network,
            tuple(
                ChannelPlan(
                    group.producers,
                    len(group.ids),
                    count,
                    _part(each.errors[len(group.ids) - count], each.errors[-1]),
                )
                for group, each, count in pairs
            ),
        )


def _columns(consumer: Consumer, group: Group) -> list[Indices]:
    """Returns where each channel of a group is among those that a consumer takes."""
    return [np.flatnonzero(consumer.lane.ids == channel) for channel in group.ids]


def of_widths(network: Network, widths: Sequence[tuple[int, int]]) -> Network:
    """Removes any channels, so that each group has its width; for weights that are loaded then.

    Args:
        network: The network.
        widths: The number of channels before and after, by group, in order; none removes none.

    Raises:
        ValueError: If the network has other groups.
    """
    if not widths:
        return network
    network = split_separable(network)
    graph = ChannelGraph(network)
    if [len(group.ids) for group in graph.groups] != [before for before, _ in widths]:
        raise ValueError("its layers make other channels.")
    removed = [
        int(channel)
        for group, (_, after) in zip(graph.groups, widths, strict=True)
        for channel in group.ids[after:]
    ]
    return remove_channels(graph, network, removed)


def _part(error: float, whole: float) -> float:
    return float(error / whole) if whole > 0 else 0.0


def _output_kernel(consumer: Consumer) -> Kernel:
    """Observes the outputs of a consumer, and the gradient of the loss there."""
    layer, kernel = consumer.layer, consumer.layer.kernel
    outputs = int(output_shape(layer)[-1] or 0)
    return Kernel(
        m=prod(kernel.shape) // outputs,
        n=outputs,
        layer=layer,
        variable=kernel,
        read=lambda array: array,
        outputs=lambda inputs: inputs,
        positions=output_positions(layer),
    )


def _input_kernel(consumer: Consumer) -> Kernel:
    """Observes the channels of the input of a consumer, in the place of outputs."""
    import tensorflow as tf

    layer, size = consumer.layer, len(consumer.lane.ids)
    return Kernel(
        m=size,
        n=size,
        layer=layer,
        variable=layer.kernel,
        read=lambda array: array,
        outputs=lambda inputs: tf.reshape(inputs, (-1, 1, size)),
        positions=max(1, output_positions(layer)),
        has_bias=bool(layer.use_bias) and not consumer.is_padded,
        gradient_at=None,
    )
