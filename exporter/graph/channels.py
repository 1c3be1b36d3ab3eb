"""Follows channels through the graph of a Keras model.

A channel is an index along the last axis of a tensor. Every layer either makes channels of its own,
as ``Dense`` does, or keeps those of its input apart. Where tensors are added, their channels become
one. What is not known to do either holds the channels that go in and come out: they stay.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.graph.layers import (
    ChannelRole,
    input_shape,
    is_channels_last,
    is_elementwise,
    kind_of,
    output_shape,
    unsupported_feature,
)
from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor
from exporter.graph.walk import calls, is_graph

Indices = NDArray[np.intp]

Floats = NDArray[np.float64]

_MERGING_OPERATIONS = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum"}
"""Operations of ``keras.ops`` that combine two tensors element by element."""


@dataclass(frozen=True)
class Lane:
    """The channels of a tensor.

    Attributes:
        ids: A number for each element of the last axis, or of a part of it.
        positions: How often these numbers are repeated along the axis, as after ``Flatten``.
    """

    ids: Indices
    positions: int = 1

    @property
    def size(self) -> int:
        """The length of the last axis."""
        return len(self.ids) * self.positions

    @property
    def spread(self) -> Indices:
        """The number of each element of the last axis."""
        return np.tile(self.ids, self.positions)


@dataclass(frozen=True)
class Consumer:
    """A layer that multiplies the channels of its input by a kernel.

    Attributes:
        path: Path of the layer.
        layer: The layer.
        lane: The channels of its input.
    """

    path: str
    layer: Layer
    lane: Lane

    @property
    def kernel(self) -> Floats:
        """The kernel as positions x channels x outputs, in float64."""
        array = self.layer.kernel.numpy().astype(np.float64)
        if kind_of(self.layer).channels == "transposed":
            array = np.swapaxes(array, -1, -2)
        return np.asarray(array.reshape(-1, len(self.lane.ids), array.shape[-1]))

    @property
    def is_padded(self) -> bool:
        """Whether zeros stand in for inputs beyond the border, so that no constant can be moved."""
        if kind_of(self.layer).channels == "transposed":
            return True  # At its border, fewer inputs are summed up.
        padding = getattr(self.layer, "padding", "valid")
        return padding != "valid" and max(self.layer.kernel_size) > 1


@dataclass(frozen=True)
class Group:
    """Channels that the same layers make.

    Attributes:
        ids: The number of each channel.
        producers: Paths of the layers that make them.
    """

    ids: Indices
    producers: tuple[str, ...]


@dataclass(frozen=True)
class ChannelPlan:
    """What was decided about a group of channels.

    Attributes:
        layers: Paths of the layers that make them.
        before: Their number before.
        after: Their number after.
        error: What their removal costs the loss, as a part of what that of all would cost.
    """

    layers: tuple[str, ...]
    before: int
    after: int
    error: float


@dataclass
class _Visit:
    """The lanes of a layer at its first call, and the number of its calls."""

    layer: Layer
    inputs: list[Lane]
    output: Lane
    times: int = 1


@dataclass
class _Union:
    """Sets of channels that are one; channel 0 stands for all that have to stay."""

    parents: list[int] = field(default_factory=lambda: [0])

    def new(self, count: int) -> Indices:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        while self.parents[channel] != channel:
            self.parents[channel] = channel = self.parents[self.parents[channel]]
        return channel

    def join(self, left: Indices, right: Indices) -> None:
        for one, other in zip(left, right, strict=True):
            low, high = sorted((self.root(int(one)), self.root(int(other))))
            self.parents[high] = low


class ChannelGraph:
    """The channels of one network: who makes them, who takes them, and which belong together.

    Attributes:
        consumers: The layers that multiply removable channels by a kernel.
        groups: The channels that may be removed, by the layers that make them.
    """

    def __init__(self, network: Network) -> None:
        """Follows the channels from the inputs to the outputs, which hold theirs."""
        self._union = _Union()
        self._paths = {id(layer): path for path, layer in network.layers.items()}
        self._visits: dict[str, _Visit] = {}
        self._nested: dict[int, list[Lane]] = {}
        model = network.model
        self._hold(self._trace(model, [self._held(tensor) for tensor in model.inputs]))
        for visit in self._visits.values():
            for lane in (*visit.inputs, visit.output):
                lane.ids[:] = [self._union.root(int(channel)) for channel in lane.ids]
        self.consumers = tuple(self._consumers())
        self.groups = tuple(self._groups())

    def _consumers(self) -> Iterator[Consumer]:
        for path, visit in self._visits.items():
            if kind_of(visit.layer).makes_channels and visit.inputs[0].ids.any():
                yield Consumer(path, visit.layer, visit.inputs[0])

    def _groups(self) -> Iterator[Group]:
        makers: dict[int, list[str]] = {}
        for path, visit in self._visits.items():
            if kind_of(visit.layer).makes_channels:
                for channel in set(visit.output.ids[visit.output.ids > 0].tolist()):
                    makers.setdefault(channel, []).append(path)
        taken = {int(channel) for c in self.consumers for channel in c.lane.ids}
        together: dict[tuple[str, ...], list[int]] = {}
        for channel, paths in makers.items():
            if channel in taken:
                together.setdefault(tuple(paths), []).append(channel)
        for producers, channels in together.items():
            yield Group(np.array(sorted(channels)), producers)

    def lanes(self, path: str) -> tuple[tuple[Lane, ...], Lane]:
        """Returns the channels of the inputs and the output of a layer that was followed."""
        visit = self._visits[path]
        return tuple(visit.inputs), visit.output

    def applications(self, path: str) -> int:
        """Counts how often the kernel of a layer is applied to one sample."""
        visit = self._visits[path]
        return visit.times * output_positions(visit.layer)

    @property
    def followed(self) -> dict[str, Layer]:
        """The layers whose channels are known, by path."""
        return {path: visit.layer for path, visit in self._visits.items()}

    def _trace(self, model: Any, inputs: Sequence[Lane]) -> list[Lane]:
        graph, nodes = calls(model)
        lanes = {id(tensor): lane for tensor, lane in zip(graph.inputs, inputs, strict=True)}
        for node in nodes:
            if node.is_input:
                continue
            given = [lanes[id(tensor)] for tensor in node.input_tensors]
            made = self._follow(node, given)
            lanes |= {id(tensor): lane for tensor, lane in zip(node.outputs, made, strict=True)}
        return [lanes[id(tensor)] for tensor in graph.outputs]

    def _follow(self, node: Any, given: list[Lane]) -> list[Lane]:
        """Returns the lanes of what a call returns."""
        operation = node.operation
        if is_graph(operation):
            self._hold(given)  # Its own inputs have their sizes.
            if id(operation) not in self._nested:
                self._nested[id(operation)] = self._trace(operation, given)
            return self._nested[id(operation)]
        if id(operation) in self._paths and len(node.outputs) == 1:
            lane = self._through(operation, node, given)
            if lane is not None:
                return [lane]
        if type(operation).__name__ in _MERGING_OPERATIONS and len(given) == 2:
            lane = self._merged(given, node.outputs[0])
            if lane is not None:
                return [lane]
        self._hold(given)
        return [self._held(tensor) for tensor in node.outputs]

    def _through(self, layer: Layer, node: Any, given: list[Lane]) -> Lane | None:
        """Returns the lane of what a layer returns; None if nothing is known of it."""
        role, output = kind_of(layer).channels, node.outputs[0]
        if role is None or not is_channels_last(layer) or unsupported_feature(layer):
            return None
        former = self._visits.get(self._paths[id(layer)])
        # Layers that only compute may be given tensors of any width.
        if former is not None and (layer.weights or hasattr(layer, "target_shape")):
            return self._again(former, given)
        ways: dict[ChannelRole, Callable[..., Lane | None]] = {
            "product": self._made,
            "transposed": self._made,
            "depthwise": self._multiplied,
            "apart": self._kept,
            "scaled": self._scaled,
            "reshaped": self._reshaped,
            "merged": lambda _, lanes, tensor: self._merged(lanes, tensor),
            "joined": self._joined,
        }
        lane = ways[role](layer, given, output)
        if lane is not None:
            self._visits.setdefault(self._paths[id(layer)], _Visit(layer, given, lane))
        return lane

    def _again(self, former: _Visit, given: list[Lane]) -> Lane | None:
        """Makes the channels of a later call of the same layer those of the first one."""
        if [lane.size for lane in given] != [lane.size for lane in former.inputs]:
            self._hold([*former.inputs, former.output])
            return None
        self._join_all(given, former.inputs)
        former.times += 1
        return former.output

    def _made(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Gives new channels to a layer with a kernel, unless its activation mixes them."""
        if len(given) != 1 or getattr(layer, "groups", 1) != 1:
            return None
        if not is_elementwise(layer.activation):
            return self._held(output)
        return Lane(self._union.new(int(output.shape[-1])))

    def _kept(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Hands on the channels of the only input, if the last axis stays as it is."""
        if len(given) != 1 or given[0].size != output.shape[-1]:
            return None
        return given[0] if is_elementwise(getattr(layer, "activation", None)) else None

    def _scaled(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Hands on the channels to a layer whose weights have one element for each."""
        rank = len(output.shape)
        axes = [axis % rank for axis in np.atleast_1d(getattr(layer, "axis", -1))]
        if axes != [rank - 1] or any(w.shape[-1] != output.shape[-1] for w in layer.weights):
            return None
        return self._kept(layer, given, output)

    def _multiplied(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Repeats each channel as often as a depthwise convolution makes outputs of it."""
        if len(given) != 1 or not is_elementwise(layer.activation):
            return None
        return Lane(np.repeat(given[0].spread, layer.depth_multiplier))

    def _reshaped(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Repeats the channels for each position that the last axis now covers."""
        (lane,) = given
        positions, rest = divmod(output.shape[-1] or 1, len(lane.ids))
        return Lane(lane.ids, positions) if not rest else None

    def _merged(self, given: list[Lane], output: Tensor) -> Lane | None:
        """Makes one of the channels of tensors that are combined element by element."""
        wide = [lane for lane in given if lane.size == output.shape[-1]]
        if any(lane.size not in (1, output.shape[-1]) for lane in given):
            return None
        self._join_all(wide[:1] * len(wide), wide)
        return wide[0]

    def _joined(self, layer: Layer, given: list[Lane], output: Tensor) -> Lane | None:
        """Puts the channels of several tensors one after the other."""
        if layer.axis not in (-1, len(output.shape) - 1):
            return None
        return Lane(np.concatenate([lane.spread for lane in given]))

    def _held(self, tensor: Tensor) -> Lane:
        return Lane(np.zeros((tensor.shape[-1] if tensor.shape else 1) or 1, dtype=np.intp))

    def _join_all(self, lanes: Sequence[Lane], others: Sequence[Lane]) -> None:
        for lane, other in zip(lanes, others, strict=True):
            self._union.join(lane.spread, other.spread)

    def _hold(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            self._union.join(lane.ids, np.zeros_like(lane.ids))


def output_positions(layer: Layer) -> int:
    """Counts how often a kernel is applied in one call on one sample."""
    shape = input_shape(layer) if kind_of(layer).channels == "transposed" else output_shape(layer)
    return int(np.prod([size or 1 for size in shape[1:-1]], dtype=np.int64))
