"""Divides a budget among groups of channels, by what each loses and what it costs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.graph.calls import of_one_sample
from exporter.graph.channels import ChannelGraph, Floats, Lane
from exporter.graph.layers import kind_of
from exporter.graph.network import Network
from exporter.graph.types import Layer
from exporter.lowrank.candidates import CostKind


class Costs:
    """Parameters or multiply-accumulates of a network, by how many channels of each group stay.

    A kernel takes the product of its inputs and its outputs; a bias, and weights with one element a
    channel, take the outputs alone.
    """

    def __init__(self, network: Network, graph: ChannelGraph, unit: CostKind) -> None:
        """Counts the network as it is."""
        self.whole = network.params if unit == "params" else network.macs
        groups = graph.groups
        self._sizes = np.array([len(group.ids) for group in groups])
        owner = {int(i): number for number, group in enumerate(groups) for i in group.ids}

        def parts(lane: Lane) -> Floats:
            """The part of a lane that each group has; the last one is held."""
            owners = [owner.get(int(channel), len(groups)) for channel in lane.ids]
            return np.bincount(owners, minlength=len(groups) + 1) / len(owners)

        held = np.eye(len(groups) + 1)[-1]
        rows: list[tuple[float, Floats, Floats]] = []
        with of_one_sample(network.calls):
            for path, layer in graph.followed.items():
                (first, *_), output = graph.lanes(path)
                times = 1 if unit == "params" else graph.applications(path)
                for size, is_kernel in _weights(layer, unit):
                    multiplies = is_kernel and kind_of(layer).makes_channels
                    rows.append((times * size, parts(first) if multiplies else held, parts(output)))
        self._weights = np.array([size for size, _, _ in rows])
        self._taken, self._made = (np.array([row[k] for row in rows]) for k in (1, 2))
        self._rest = self.whole - float(self._weights.sum())

    def of(self, counts: Floats) -> float:
        """Returns the cost with so many channels of each group."""
        shares = np.append(counts / self._sizes, 1.0)
        return float(self._rest + self._weights @ ((self._taken @ shares) * (self._made @ shares)))


def _weights(layer: Layer, unit: CostKind) -> Iterator[tuple[float, bool]]:
    """Yields the sizes of the weights that count, and whether each one is a kernel."""
    multiplies = kind_of(layer).channels != "scaled"
    for weight in layer.weights:
        is_kernel = multiplies and len(weight.shape) > 1
        if is_kernel or unit == "params":
            yield float(np.prod(weight.shape)), is_kernel


@dataclass(frozen=True)
class Curve:
    """What the loss grows by if so many channels of a group stay.

    Attributes:
        counts: The numbers of channels that may stay, falling.
        errors: The growth at each of them.
    """

    counts: Sequence[int]
    errors: Sequence[float]


def levels(size: int) -> list[int]:
    """Returns how many channels of a group may stay: kernels compute channels by eights."""
    step = 8 if size >= 32 else 4 if size >= 8 else 1
    return [size, *range((size - 1) // step * step, 0, -step)]


def allocate(costs: Costs, curves: Sequence[Curve], budget: float) -> list[int] | None:
    """Takes, again and again, the step that costs least for what it saves.

    What a step saves depends on the channels that others have by then, so the steps are not known
    beforehand. The last one may save more than it has to: then those that fit are taken back.

    Returns:
        The number of channels of each group that stay; None if the budget cannot be kept.
    """
    at = [0] * len(curves)

    def steps(direction: int) -> Iterator[tuple[float, int, float]]:
        """Yields the ratio of loss and cost of each step, its group, and the cost after it."""
        for number, curve in enumerate(curves):
            place = at[number] + direction
            if 0 <= place < len(curve.counts):
                moved = (p + direction * (k == number) for k, p in enumerate(at))
                after = costs.of(_counts(curves, moved))
                change = abs(curve.errors[place] - curve.errors[at[number]])
                yield change / max(1e-9, abs(after - cost)), number, after

    cost = costs.of(_counts(curves, at))
    while cost > budget:
        best = min(steps(1), default=None)
        if best is None:
            return None
        _, number, cost = best
        at[number] += 1
    while fitting := [step for step in steps(-1) if step[2] <= budget]:
        _, number, cost = max(fitting)
        at[number] -= 1
    return [curve.counts[place] for curve, place in zip(curves, at, strict=True)]


def _counts(curves: Sequence[Curve], places: Iterable[int]) -> Floats:
    return np.array([c.counts[place] for c, place in zip(curves, places, strict=True)], float)
