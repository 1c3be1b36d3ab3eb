"""What an app must know of a model beside its file: how to feed it, and what its classes are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.errors import InputError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Normalization:
    """How raw values become what an input takes: ``(raw - mean) / std``.

    Attributes:
        mean: In the unit of the raw values.
        std: Likewise; not zero.

    Raises:
        InputError: If these are no such numbers.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std == 0:
            raise InputError(
                "A normalization is a finite mean, and a finite std other than 0. "
                f"Received: mean {self.mean!r}, std {self.std!r}."
            )


@dataclass(frozen=True)
class ModelCard:
    """What artifacts tell of their model, where their format has a place for it.

    Attributes:
        description: What the model does; None tells nothing.
        normalization: By input; inputs that are left out tell nothing.
        labels: Names of the classes, in order, by output; likewise.
    """

    description: str | None = None
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
