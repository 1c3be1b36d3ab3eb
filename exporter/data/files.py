"""Reads ``.npz`` and ``.npy`` files; large arrays stay there."""

import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from exporter.data.lazy import Array, Index, LazyArray, Samples, numbered
from exporter.data.split import ONLY_INPUT
from exporter.errors import DataError, brief
from exporter.inputs import check_archive, parse_json

LARGE_BYTES = 256 * 2**20
"""Arrays stay in files larger than this."""

READ_BYTES = 4 * 2**30
"""Largest array that is read into memory where it cannot stay in its file."""

_LOCAL_HEADER = 30
"""Bytes of the header of a zip member before its name and extra field, whose lengths end it."""


@dataclass(frozen=True)
class FileRows:
    """An array in a file, from byte ``offset`` on; ``read`` needs C order."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, rows: slice | Index) -> Array:
        """Reads samples; neighbours in the file are read at once."""
        numbers = numbered(rows, self.shape[0])
        samples = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        if not samples.size:
            return samples
        # A memory map would take up to two megabytes for each sample.
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


class ArrayRows:
    """An array that NumPy has mapped."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self, rows: slice | Index) -> Array:
        """Reads samples."""
        return np.array(self.array[rows])


def left_on_disk(array: Array) -> Samples:
    """Makes a large array that the caller has mapped lazy."""
    large = isinstance(array, np.memmap) and array.nbytes > LARGE_BYTES
    return LazyArray(ArrayRows(array)) if large else array


def read_file(path: Path) -> dict[str, Samples]:
    """Reads arrays by name; arrays of large files are lazy.

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


_DESCRIPTION = "description"


def write_described(file: Path, arrays: Mapping[str, Array], described: Any) -> None:
    """Writes arrays, and JSON values that describe them, to an ``.npz`` file."""
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez_compressed(file, **arrays, **{_DESCRIPTION: text})  # type: ignore[arg-type]


def read_described(file: Path) -> tuple[dict[str, Array], Any]:
    """Reads what ``write_described`` wrote; raises any exception on a damaged file."""
    arrays = read_arrays(file)
    return arrays, parse_json(arrays.pop(_DESCRIPTION).tobytes())


def read_arrays(path: Path) -> dict[str, Array]:
    """Reads the arrays of a file into memory.

    Raises:
        DataError: As ``read_file`` does.
    """
    return {name: np.asarray(array) for name, array in read_file(path).items()}


def _arrays(path: Path, file: IO[bytes]) -> dict[str, Samples]:
    prefix = np.lib.format.MAGIC_PREFIX
    is_npy = file.read(len(prefix)) == prefix
    file.seek(0)
    if is_npy:
        stored = _header(path, file, ONLY_INPUT, path.stat().st_size)
        if stored.nbytes > LARGE_BYTES and _stays(stored, ONLY_INPUT):
            return {ONLY_INPUT: LazyArray(stored)}
        file.seek(0)
        return {ONLY_INPUT: np.load(file, allow_pickle=False)}
    with zipfile.ZipFile(file) as archive:
        check_archive(path, archive)
        members = archive.infolist()
        large = sum(member.file_size for member in members) > LARGE_BYTES
        found: dict[str, Samples] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"it has two arrays {name!r}.")
            stored = _member(path, file, archive, member, name)
            packed = member.compress_type != zipfile.ZIP_STORED
            if large and _stays(stored, name, compressed=packed):
                found[name] = LazyArray(stored)
            else:
                with archive.open(member) as opened:
                    found[name] = np.lib.format.read_array(opened, allow_pickle=False)
        return found


def _header(path: Path, file: IO[bytes], name: str, size: int, start: int = 0) -> FileRows:
    """Reads the header of an array at byte ``start`` of a file, from where it has ``size`` bytes.

    Raises:
        ValueError: If there is no array of numbers, or less of it than its header tells.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:  # Version 3 is for field names of records beyond Latin-1.
            raise ValueError(f"of version {version[0]}, which is for records alone.")
    except ValueError as error:
        raise ValueError(f"{name!r} in it is no array of numbers: {brief(error)}") from error
    if dtype.hasobject:
        raise ValueError("it holds objects, or no arrays.")
    stored = FileRows(path, dtype, shape, start + file.tell(), fortran)
    if min(shape, default=0) < 0:
        raise ValueError(f"its array {name!r} is of shape {shape}.")
    if stored.nbytes > size - file.tell():
        raise ValueError(f"its array {name!r} is cut off.")
    return stored


def _member(
    path: Path, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> FileRows:
    """Finds an array in an archive."""
    file.seek(info.header_offset + _LOCAL_HEADER - 4)
    start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4)))
    with archive.open(info) as member:
        return _header(path, member, name, info.file_size, start)


def _stays(stored: FileRows, name: str, *, compressed: bool = False) -> bool:
    """Tells whether an array stays in its file; otherwise it is to be read into memory."""
    if not stored.nbytes:
        return False
    large = stored.nbytes > READ_BYTES
    if not compressed and not stored.fortran:
        # One number a sample takes no more than the order of the samples does.
        return large or len(stored.shape) > 1
    if not large:
        return False
    reason, remedy = (
        ("compressed", "np.savez in place of np.savez_compressed")
        if compressed
        else ("in Fortran order", "np.save or np.savez after np.ascontiguousarray")
    )
    raise DataError(
        f"Array {name!r} of data {str(stored.path)!r} takes {stored.nbytes / 2**30:.1f} GB and is "
        f"{reason}, so that it must be read into memory as a whole; at most "
        f"{READ_BYTES / 2**30:.0f} GB are. Save it by {remedy}."
    )


def read_keras(name: str) -> dict[str, Samples]:
    """Reads a data set of Keras from its cache, or has Keras download it."""
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
