"""What every array must be."""

import hashlib
from collections.abc import Mapping

import numpy as np

from exporter.data.lazy import Array, Samples, chunks
from exporter.errors import DataError


def check_values(where: str, array: Samples) -> None:
    """Checks that an array holds numbers, without looking at them.

    Raises:
        DataError: If it does not.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} must be numeric. Received: dtype {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{where} must hold samples. Received: shape {array.shape}.")


def check_finite(where: str, array: Array) -> None:
    """Checks that there is no NaN or infinity in an array.

    Raises:
        DataError: If there is.
    """
    _refuse(where, _count_bad(array))


def checked_digest(source: str, arrays: Mapping[str, Samples]) -> str:
    """Hashes arrays with their names, types and shapes, and checks their values on the way.

    Args:
        source: What the data are called in messages.
        arrays: By name; they are gone through once, in chunks.

    Raises:
        DataError: If there is a NaN or infinity.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bad = 0
        for chunk in chunks(array):
            bad += _count_bad(chunk)
            digest.update(np.ascontiguousarray(chunk).tobytes())
        _refuse(f"Array {name!r} of data {source!r}", bad)
    return digest.hexdigest()


def _count_bad(array: Array) -> int:
    return array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0


def _refuse(where: str, bad: int) -> None:
    if bad:
        raise DataError(f"{where} must be finite. Received: {bad} NaN or infinite values.")
