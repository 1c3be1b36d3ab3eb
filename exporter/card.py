"""Describes a model for apps: the normalization of its inputs and the names of its classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.errors import InputError
from exporter.screen import fits_screen

Numbers = float | tuple[float, ...]
"""One number for all channels, or one for each of them."""


@fits_screen
@dataclass(frozen=True)
class Normalization:
    """The map of raw values to an input: ``(raw - mean) / std``, in the unit of the raw values.

    Attributes:
        reverse_channels: Whether the channels of raw values are reversed first, from RGB to BGR.

    Raises:
        InputError: If mean or std is not finite, or std is 0.
    """

    mean: Numbers = 0.0
    std: Numbers = 1.0
    reverse_channels: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, value[0] if len(value) == 1 else tuple(value))
        if not all(map(math.isfinite, self.means + self.stds)) or 0 in self.stds:
            raise InputError(
                "A normalization is a finite mean, and a finite std other than 0. "
                f"Received: mean {self.mean!r}, std {self.std!r}."
            )

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each channel, or a single one."""
        return self.mean if isinstance(self.mean, tuple) else (self.mean,)

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation of each channel, or a single one."""
        return self.std if isinstance(self.std, tuple) else (self.std,)

    @property
    def channels(self) -> int:
        """The number of channels that it is for; 1 if it is for any."""
        return max(len(self.means), len(self.stds))


@fits_screen
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
