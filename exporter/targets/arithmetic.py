"""Targets without a clock: multiply-accumulates, and TensorFlow Lite Micro's memory."""

from collections.abc import Mapping, Sequence

from exporter.data import Array
from exporter.formats.base import Format
from exporter.formats.extras import MICRO
from exporter.formats.tflite.flatbuffer import macs_by_operator
from exporter.formats.tflite.micro import adapted, measure_arena
from exporter.targets.base import Cost, Subject, Target


class Macs(Target):
    """Counts the multiply-accumulates of the network, whatever the format."""

    unit = "multiply-accumulates"
    layered = False

    def measure(
        self,
        fmt: Format,
        subjects: Sequence[Subject],
        inputs: Mapping[str, Array],
        *,
        detailed: bool = True,
    ) -> list[Cost]:
        """See the base class."""
        del fmt, inputs, detailed
        return [Cost(subject.network.macs) for subject in subjects]

    def text(self, cost: Cost) -> str:
        """See the base class."""
        return f"{cost.value / 1000:,.0f} k MACs"


class Micro(Macs):
    """Counts the multiply-accumulates of TensorFlow Lite Micro's operators, and its arena.

    ``figures`` has those of each kind of operator, and the arena as ``arena_bytes``.
    """

    def check(self) -> None:
        """Refuses a machine without TensorFlow Lite Micro."""
        MICRO.require(f"Target {self.name!r}")

    def measure(
        self,
        fmt: Format,
        subjects: Sequence[Subject],
        inputs: Mapping[str, Array],
        *,
        detailed: bool = True,
    ) -> list[Cost]:
        """See the base class."""
        del inputs
        costs = []
        for subject in subjects:
            content = fmt.flatbuffer(subject.path)
            macs = macs_by_operator(content)
            arena = {"arena_bytes": measure_arena(adapted(content))} if detailed else {}
            costs.append(Cost(sum(macs.values()), {**macs, **arena}))
        return costs

    def text(self, cost: Cost) -> str:
        """See the base class."""
        return f"{super().text(cost)}, arena {cost.figures['arena_bytes'] / 1000:,.1f} KB"
