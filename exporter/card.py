"""Describes a model for apps: the normalization of its inputs and the names of its classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.errors import InputError


@dataclass(frozen=True)
class Normalization:
    """The map of raw values to an input: ``(raw - mean) / std``, in the unit of the raw values.

    Raises:
        InputError: If mean or std is not finite, or std is 0.
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
    """The description of a model that artifacts hold where their format has a place for it.

    Attributes:
        description: A text on the purpose of the model, or None.
        normalization: Normalization by input name; may leave inputs out.
        labels: Names of the classes, in order, by output name; may leave outputs out.
    """

    description: str | None = None
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
