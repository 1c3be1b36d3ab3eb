"""Real numbers as integers: ``real = scale * (integer - zero_point)``."""

import numpy as np
from numpy.typing import DTypeLike

from exporter.data import Array
from exporter.graph.signature import Quantization


def spread(low: float, high: float, dtype: DTypeLike) -> Quantization:
    """Spreads a range, whose ends are at most and at least 0, over all integers of a type."""
    limits = np.iinfo(dtype)
    scale = float(np.float32((high - low) / (limits.max - limits.min)))
    if scale < np.finfo(np.float32).tiny:
        return Quantization(1.0, 0)
    return Quantization(scale, round(limits.min - low / scale))


def to_integers(values: Array, quantization: Quantization, dtype: DTypeLike) -> Array:
    """Quantizes real numbers: rounds half to even and clips to the range of the type."""
    limits = np.iinfo(dtype)
    integers = np.rint(np.asarray(values, np.float64) / quantization.scale)
    clipped: Array = np.clip(integers + quantization.zero_point, limits.min, limits.max)
    return clipped.astype(dtype)


def to_reals(integers: Array, quantization: Quantization) -> Array:
    """Dequantizes integers to float32."""
    steps = integers.astype(np.float64) - quantization.zero_point
    return (steps * quantization.scale).astype(np.float32)
