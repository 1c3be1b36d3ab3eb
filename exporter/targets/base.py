"""The contract of a target: what one call of an artifact costs where it will run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from exporter.data import Array
from exporter.formats.base import Format
from exporter.graph.network import Network


@dataclass(frozen=True)
class Cost:
    """The cost of one call, batch 1, one thread.

    Attributes:
        value: In the unit of the target.
        figures: Further measurements, by name.
    """

    value: float
    figures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """An artifact, and the network that it was made from."""

    path: Path
    network: Network


class Target(ABC):
    """Measures artifacts.

    Attributes:
        name: As the option ``target`` has it.
        unit: Of a cost, in the plural.
        layered: Whether costs of layers are measured on their own; otherwise they are MACs.
        steps: Costs of one unit are counted in so many steps, as whole numbers.
    """

    unit: ClassVar[str]
    layered: ClassVar[bool] = True
    steps: ClassVar[int] = 1

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Raises a RecipeError if something is not installed that measuring needs."""

    @abstractmethod
    def measure(
        self,
        fmt: Format,
        subjects: Sequence[Subject],
        inputs: Mapping[str, Array],
        *,
        detailed: bool = True,
    ) -> list[Cost]:
        """Measures artifacts of one format, which has this target.

        Args:
            fmt: Their format.
            subjects: One or more.
            inputs: A batch that all of them take.
            detailed: Whether figures are measured that take longer than the cost itself.

        Raises:
            ChildError: If a runtime cannot run one of them.
            ConversionError: If TensorFlow Lite Micro cannot.
        """

    @abstractmethod
    def text(self, cost: Cost) -> str:
        """Returns a cost as a table shows it."""
