"""This machine: the time of a call in the runtime of each format."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from exporter.data import Array
from exporter.disk import scratch_folder
from exporter.formats.base import Format
from exporter.targets.base import Cost, Subject, Target
from exporter.targets.latency import ROUND_SECONDS, measure_latency

LAYER_SECONDS = 0.02
"""Time of a round of one layer on its own: many are compared, and noise averages out."""


class Here(Target):
    """Times calls, in seconds."""

    unit = "ns"
    steps: ClassVar[int] = 10**9

    def measure(
        self,
        fmt: Format,
        subjects: Sequence[Subject],
        inputs: Mapping[str, Array],
        *,
        detailed: bool = True,
    ) -> list[Cost]:
        """Times the artifacts in turns, briefly if without details; see the base class."""
        seconds = ROUND_SECONDS if detailed else LAYER_SECONDS
        paths = [subject.path for subject in subjects]
        with scratch_folder() as folder:
            times = measure_latency(fmt, paths, inputs, folder, seconds=seconds)
        return [Cost(time.p50) for time in times]

    def text(self, cost: Cost) -> str:
        """See the base class."""
        return f"{cost.value * 1e6:,.1f} µs"
