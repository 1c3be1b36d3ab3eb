"""Checks the values of arrays, and hashes them."""

import hashlib
from collections.abc import Mapping

import numpy as np

from exporter.data.lazy import Array, Samples, chunks
from exporter.errors import DataError

MOST_VALUE = 1e15
"""Largest value of data: statistics sum squares in float32. 1e20 stands for what is missing."""


def check_values(where: str, array: Samples) -> None:
    """Raises a ``DataError`` if, by its type and shape, an array holds no numbers."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} must be numeric. Received: dtype {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{where} must hold samples. Received: shape {array.shape}.")


def checked_digest(source: str, arrays: Mapping[str, Samples]) -> str:
    """Hashes arrays with their names, types and shapes, in chunks, and checks their values.

    Raises:
        DataError: If there is a NaN, an infinity or a value beyond ``MOST_VALUE``.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bad: list[Array] = []
        for chunk in chunks(array):
            bad.append(find_bad(chunk))
            digest.update(np.ascontiguousarray(chunk).tobytes())
        refuse_bad(f"Array {name!r} of data {source!r}", np.concatenate(bad))
    return digest.hexdigest()


def find_bad(array: Array) -> Array:
    """Returns the values that are NaN, infinite or beyond ``MOST_VALUE``."""
    if array.dtype.kind != "f":
        return np.empty(0, array.dtype)  # An empty view would keep all of the array.
    most = min(MOST_VALUE, float(np.finfo(array.dtype).max))
    bad: Array = array[~((array >= -most) & (array <= most))]
    return bad


def refuse_bad(where: str, bad: Array) -> None:
    """Raises a ``DataError`` if there are values that ``find_bad`` finds."""
    if bad.size:
        raise DataError(
            f"{where} must be finite, and within -{MOST_VALUE:g} and {MOST_VALUE:g}, whose squares "
            f"float32 can sum up. Received: {bad.size} NaN, infinite or larger values, such as "
            f"{bad[0]:g}. Replace values that stand for missing ones."
        )
