"""Arrays in ``.npz`` and ``.npy`` files; large ones stay there."""

import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from exporter.data.lazy import Array, Index, LazyArray, Samples, numbered
from exporter.data.split import ONLY_INPUT
from exporter.errors import DataError, brief

LARGE_BYTES = 256 * 2**20
"""Arrays stay in a file that holds more than this."""

READ_BYTES = 4 * 2**30
"""The most that is read into memory of an array that cannot stay in its file."""

_LOCAL_HEADER = 30
"""Bytes of a zip member's own header, up to its name."""


@dataclass(frozen=True)
class FileRows:
    """An array in C order, somewhere in a file.

    Attributes:
        path: The file.
        dtype: Of the array.
        shape: Of the array.
        offset: Where it begins.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def read(self, rows: slice | Index) -> Array:
        """Reads some samples, those that lie side by side at once."""
        numbers = numbered(rows, self.shape[0])
        samples = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        if not samples.size:
            return samples
        # No memory map: for each sample that is looked at, the system may map two megabytes.
        content = samples.reshape(-1).view(np.uint8).data
        size = len(content) // len(numbers)
        done = 0
        try:
            with self.path.open("rb") as file:
                for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                    file.seek(self.offset + int(run[0]) * size)
                    done += file.readinto(content[done : done + len(run) * size])
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be read: {brief(error)}") from error
        if done < len(content):
            raise DataError(
                f"{str(self.path)!r} is cut off: {len(content):,} bytes were to be read. Received: "
                f"{done:,}. Write it anew, and leave it as it is while it is in use."
            )
        return samples


@dataclass(frozen=True)
class ArrayRows:
    """An array that NumPy has mapped already."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype

    def read(self, rows: slice | Index) -> Array:
        """Reads some samples."""
        return np.array(self.array[rows])


def left_on_disk(array: Array) -> Samples:
    """Keeps an array that the caller has mapped from being read, if it is large."""
    large = isinstance(array, np.memmap) and array.nbytes > LARGE_BYTES
    return LazyArray(ArrayRows(array)) if large else array


def read_file(path: Path) -> dict[str, Samples]:
    """Reads arrays by name; those of large files are lazy.

    Raises:
        DataError: If they cannot be read, or would not fit into memory.
    """
    if path.suffix not in {".npz", ".npy"} or not path.is_file():
        raise DataError(f"Data must be a .npz or .npy file, or a folder. Received: {str(path)!r}.")
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged file open.
            return _arrays(path, file)
    except DataError:
        raise
    except Exception as error:  # NumPy, zipfile and its codecs raise whatever they run into.
        # NumPy takes any unknown content for pickled objects, and advises to trust it.
        reason = "it holds objects, or no arrays." if "pickle" in str(error) else brief(error)
        raise DataError(
            f"{str(path)!r} cannot be read: {reason} Arrays must be saved by np.save or "
            "np.savez with a numeric dtype, not object."
        ) from error


def _arrays(path: Path, file: IO[bytes]) -> dict[str, Samples]:
    prefix = np.lib.format.MAGIC_PREFIX
    is_npy = file.read(len(prefix)) == prefix
    file.seek(0)
    if is_npy:
        stored = _header(path, file)
        if stored is not None and stored.nbytes > LARGE_BYTES:
            lazy = _left_in_file(stored, ONLY_INPUT, compressed=False)
            if lazy is not None:
                return {ONLY_INPUT: lazy}
        file.seek(0)
        return {ONLY_INPUT: np.load(file, allow_pickle=False)}
    with np.load(file, allow_pickle=False) as loaded:
        members = {info.filename.removesuffix(".npy"): info for info in loaded.zip.infolist()}
        if sum(info.file_size for info in members.values()) <= LARGE_BYTES:
            return {name: loaded[name] for name in loaded.files}
        found: dict[str, Samples] = {}
        for name, info in members.items():
            lazy = _member(path, file, loaded.zip, info, name)
            found[name] = loaded[name] if lazy is None else lazy
        return found


@dataclass(frozen=True)
class _Header:
    """What the header of an array says, and where the array begins behind it."""

    rows: FileRows
    fortran: bool

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.rows.shape, dtype=object)) * self.rows.dtype.itemsize


def _header(path: Path, file: IO[bytes], start: int = 0) -> _Header | None:
    """Reads the header of an array; None if the array is none of numbers.

    Args:
        path: The file.
        file: Is at the header.
        start: Where the header begins in the file at ``path``.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # Of names beyond Latin-1, which fields of records have.
        return None
    return _Header(FileRows(path, dtype, shape, start + file.tell()), fortran)


def _member(
    path: Path, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> LazyArray | None:
    file.seek(info.header_offset + _LOCAL_HEADER - 4)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    start = info.header_offset + _LOCAL_HEADER + name_length + extra_length
    with archive.open(info) as member:
        header = _header(path, member, start)
        if header is None:
            return None
        if info.file_size < member.tell() + header.nbytes:
            raise ValueError(f"its array {name!r} is cut off.")
    return _left_in_file(header, name, compressed=info.compress_type != zipfile.ZIP_STORED)


def _left_in_file(header: _Header, name: str, *, compressed: bool) -> LazyArray | None:
    """Returns a lazy array, or None for one that is to be read now."""
    rows = header.rows
    if rows.dtype.hasobject or not header.nbytes:
        return None
    large = header.nbytes > READ_BYTES
    if not compressed and not header.fortran:
        # One number a sample takes no more than the order of the samples does.
        return LazyArray(rows) if large or len(rows.shape) > 1 else None
    if not large:
        return None
    reason, remedy = (
        ("compressed", "np.savez in place of np.savez_compressed")
        if compressed
        else ("in Fortran order", "np.save or np.savez after np.ascontiguousarray")
    )
    raise DataError(
        f"Array {name!r} of data {str(rows.path)!r} takes {header.nbytes / 2**30:.1f} GB and is "
        f"{reason}, so that it must be read into memory as a whole; at most "
        f"{READ_BYTES / 2**30:.0f} GB are. Save it by {remedy}."
    )


def read_keras(name: str) -> dict[str, Samples]:
    """Reads the file where Keras keeps it, whichever way it came there, or has Keras fetch it."""
    import keras

    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    place = home / "datasets" / f"{name}.npz"
    if place.exists():
        return read_file(place)
    try:
        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises bare Exceptions when a download fails.
        raise DataError(
            f"Keras could not download {name!r}: {brief(error)} Without a network, place an .npz "
            f"with x_train, y_train, x_test and y_test at {place}, or give its path as data."
        ) from error
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
