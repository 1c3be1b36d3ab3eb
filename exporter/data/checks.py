"""Checks the values of arrays, and hashes them."""

import hashlib
from collections.abc import Mapping

import numpy as np

from exporter.data.lazy import Array, Samples, chunks
from exporter.errors import DataError


def check_values(where: str, array: Samples) -> None:
    """Raises a ``DataError`` if, by its type and shape, an array holds no numbers."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} must be numeric. Received: dtype {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{where} must hold samples. Received: shape {array.shape}.")


def checked_digest(source: str, arrays: Mapping[str, Samples]) -> str:
    """Hashes arrays with their names, types and shapes, in chunks, and checks their values.

    Raises:
        DataError: If there is a NaN or infinity.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bad = 0
        for chunk in chunks(array):
            bad += count_bad(chunk)
            digest.update(np.ascontiguousarray(chunk).tobytes())
        refuse_bad(f"Array {name!r} of data {source!r}", bad)
    return digest.hexdigest()


def count_bad(array: Array) -> int:
    """Counts NaN and infinite values."""
    return array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0


def refuse_bad(where: str, bad: int) -> None:
    """Raises a ``DataError`` if the count of NaN and infinite values is not zero."""
    if bad:
        raise DataError(f"{where} must be finite. Received: {bad} NaN or infinite values.")
