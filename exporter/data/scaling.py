"""Scales values as a model was trained on them."""

from dataclasses import dataclass

import numpy as np

from exporter.card import Normalization
from exporter.data.lazy import Array
from exporter.errors import DataError
from exporter.options.scale import InputScale

UINT8_MAX = 255

# As keras.applications.imagenet_utils names and computes them, here for values of 0 to 255.
_NAMED = {
    "none": Normalization(),
    "unit": Normalization(std=UINT8_MAX),
    "symmetric": Normalization(mean=127.5, std=127.5),
    "caffe": Normalization(mean=(103.939, 116.779, 123.68), reverse_channels=True),
    "torch": Normalization(
        mean=(0.485 * UINT8_MAX, 0.456 * UINT8_MAX, 0.406 * UINT8_MAX),
        std=(0.229 * UINT8_MAX, 0.224 * UINT8_MAX, 0.225 * UINT8_MAX),
    ),
}


@dataclass(frozen=True)
class Scaling:
    """A map of the values of an input to those that the model takes.

    Attributes:
        name: As the option names it.
    """

    name: str
    normalization: Normalization

    @classmethod
    def of(cls, scale: InputScale) -> "Scaling":
        """Returns the scaling that an option asks for; ``auto`` is none."""
        if isinstance(scale, str):
            return cls(scale, _NAMED[scale])
        mean, std = scale
        text = ",".join("/".join(f"{number:g}" for number in numbers) for numbers in scale)
        return cls(text, Normalization(mean, std))

    @property
    def is_identity(self) -> bool:
        """Whether it leaves values as they are."""
        return self.normalization == Normalization()

    def check(self, where: str, channels: int | None) -> None:
        """Raises a DataError if there is a number for each channel, but of other channels."""
        given = self.normalization.channels
        if given not in (1, channels):
            raise DataError(
                f"Scale {self.name!r} is for {given} channels. Received: {where} with {channels}."
            )

    def __call__(self, samples: Array) -> Array:
        """Computes ``(samples - mean) / std`` in float32, the channels in reverse if so wanted."""
        if self.is_identity:
            return samples
        normalization = self.normalization
        values = samples[..., ::-1] if normalization.reverse_channels else samples
        values = np.asarray(values, np.float32) - np.asarray(normalization.mean, np.float32)
        return values / np.asarray(normalization.std, np.float32)


def candidates(channels: int | None) -> list[Scaling]:
    """Returns the scalings that models are commonly trained with, by the number of channels."""
    names = ["unit", "none", "symmetric", *(["caffe", "torch"] if channels == 3 else [])]
    return [Scaling.of(name) for name in names]
