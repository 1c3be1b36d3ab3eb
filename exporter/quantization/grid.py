"""The values that the weights of a kernel can have in integers."""

from typing import NamedTuple

import numpy as np

from exporter.lowrank.linalg.moments import Floats
from exporter.quantization.scheme import KernelFormat, levels


class Grid(NamedTuple):
    """The values that weights can have, ``step`` times integers; arrays of one shape.

    Attributes:
        step: Distance of two values.
        lowest: The least integer.
        highest: The greatest integer.
        low: Least weight of a kernel that has these steps.
        high: Greatest weight of a kernel that has these steps.
    """

    step: Floats
    lowest: Floats
    highest: Floats
    low: Floats
    high: Floats

    @classmethod
    def between(cls, low: Floats, high: Floats, kernel: KernelFormat) -> "Grid":
        """Returns the values of kernels whose weights lie between two ends."""
        count, half = levels(kernel.bits), levels(kernel.bits - 1)
        if kernel.symmetric:
            span = np.maximum(-low, high)
            step = _positive(span) / (half if kernel.signed else count / 2)
            highest = np.full_like(step, half)
            return cls(step, -highest, highest, -span, span)
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        span = high - low
        step = _positive(span) / count
        lowest = np.rint(low / step)
        highest = lowest + count
        return cls(step, lowest, highest, lowest * span / count, highest * span / count)

    def rounded(self, weights: Floats) -> Floats:
        """Returns the nearest values."""
        integers = np.clip(np.rint(weights / self.step), self.lowest, self.highest)
        return np.asarray(integers * self.step)


def _positive(span: Floats) -> Floats:
    return np.where(span > 0, span, 1.0)
