"""Looks at files before they are read: what they are, and what they would take in memory.

Files may come from anywhere. Whoever reads one asks here first, so that an endless file, a small
archive of zeros or brackets without end are an error, and not a process that stands still or dies.
"""

import json
import math
import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from exporter.errors import RecipeError

T = TypeVar("T")

FREE_BYTES = 2**28
"""Bytes that a file may unpack to whatever its size."""

MOST_EXPANSION = 100
"""Times its own size that a file may unpack to beyond that."""

JSON_BYTES = 2**25
"""Longest JSON text that is read; its values take up to 70 times as much."""


def checked_path(path: str) -> str:
    """Returns a path that leads to a regular file or a folder, or to nothing yet.

    Raises:
        RecipeError: If it leads to a device, a pipe or a socket, or no path can be such.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # The text may be no path.
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:  # ValueError of NUL and of what cannot be encoded.
        reason = error.strerror if isinstance(error, OSError) else "it has characters of no path"
        raise RecipeError(
            f"A file or folder must have a path that can be followed. Received: {path!r:.200}: "
            f"{reason}."
        ) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RecipeError(
            f"A path must lead to a regular file or a folder. Received: {path!r}, which is a "
            "device, a pipe or a socket. Copy what it yields to a file."
        )
    return path


def check_unpacked(file: Path, unpacked: int) -> None:
    """Raises a ValueError if a file would take too much memory for its size."""
    size = file.stat().st_size
    if unpacked > max(FREE_BYTES, MOST_EXPANSION * size):
        raise ValueError(
            f"it would unpack to {unpacked:,} bytes, and is of {size:,}; at most {MOST_EXPANSION} "
            f"times its size, or {FREE_BYTES:,} bytes, are read. Save it without compression."
        )


def check_archive(file: Path, archive: zipfile.ZipFile) -> None:
    """Raises a ValueError if the members of an open zip archive would take too much memory."""
    members = archive.infolist()
    check_unpacked(file, sum(m.file_size for m in members if m.compress_type))
    if sum(m.file_size for m in members if not m.compress_type) > file.stat().st_size:
        raise ValueError("its members, which are not compressed, would be longer than itself.")


def check_hdf5(file: Path, content: Any) -> None:
    """Raises a ValueError if an open HDF5 file leads to other files, or takes too much memory.

    ``content`` is an ``h5py.File`` in a file, or in an archive which is one.
    """
    check_unpacked(file, sum(_datasets(content)))


def _datasets(group: Any) -> Iterator[int]:
    """Yields the bytes of all datasets below a group."""
    import h5py

    seen = set()
    waiting = [group]
    while waiting:
        here = waiting.pop()
        info = h5py.h5o.get_info(here.id)
        if (info.fileno, info.addr) in seen:
            continue
        seen.add((info.fileno, info.addr))
        if isinstance(here, h5py.Group):
            if any(type(here.get(name, getlink=True)) is not h5py.HardLink for name in here):
                raise ValueError(f"its group {here.name!r} links to another place or file.")
            waiting += [here[name] for name in here]
        elif isinstance(here, h5py.Dataset):
            if here.external or here.is_virtual:
                raise ValueError(f"its array {here.name!r} is stored in another file.")
            yield math.prod(here.shape or ()) * here.dtype.itemsize


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Reads JSON text; if ``strict``, without the NaN and Infinity that Python adds to it.

    Raises:
        ValueError: If it is none, is too long, or is nested without end.
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"it is JSON of more than {JSON_BYTES:,} bytes.")
    try:
        return json.loads(text, parse_constant=_refuse if strict else None)
    except RecursionError as error:
        raise ValueError("it is JSON that is nested too deeply.") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON.")


def read_json(file: Path, *, strict: bool = False) -> Any:
    """Reads a file of JSON, as ``parse_json`` does.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such text.
    """
    with file.open("rb") as stream:
        return parse_json(stream.read(JSON_BYTES + 1), strict=strict)


def made_of(kind: type[T], values: Any) -> T:
    """Makes a dataclass of numbers and texts from JSON values.

    Raises:
        ValueError: If a field is missing, unknown, or of another type.
    """
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"it has {values!r:.50} in place of a {kind.__name__}.")
    for name, value in values.items():
        if name not in hints or not _fits(value, hints[name]):
            raise ValueError(f"it has a {kind.__name__} with {name!r:.50} of {value!r:.50}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"it has an incomplete {kind.__name__}.") from error


def _fits(value: Any, hint: Any) -> bool:
    """Tells whether a JSON value is of an annotated type; numbers are finite."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in {UnionType, Union}:
        return any(_fits(value, each) for each in get_args(hint))
    if hint is float:
        return type(value) in {int, float} and abs(value) <= sys.float_info.max
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    kinds: dict[Any, type] = {str: str, bool: bool, NoneType: NoneType}
    return isinstance(value, kinds.get(hint, get_origin(hint) or hint))
