"""Keeps files and folders from run to run, by a key that says all that makes them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from exporter.disk import scratch_folder
from exporter.formats.base import measure
from exporter.output import CACHE

KEPT_BYTES = 2**29
"""Bytes that are kept; what was used last stays."""

_FOLDER = CACHE / "kept"

_HASHED = ".sha256-"
"""Stands between the key and the hash of the content in a name."""


def fetch(key: str, path: Path) -> bool:
    """Copies what is kept under a key to a path; tells whether there was anything, undamaged."""
    for kept in _FOLDER.glob(f"{key}{_HASHED}*"):
        with suppress(OSError):  # Removed by another run.
            os.utime(kept)
            _copy(kept, path)
            if kept.name == _name(key, path):
                return True
            discard(kept)
        discard(path)
    return False


def keep(key: str, path: Path) -> None:
    """Keeps a copy of a file or folder, and removes what was used longest ago.

    A copy that cannot be made is not kept: the next run makes the file anew.
    """
    with suppress(OSError):
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with scratch_folder(_FOLDER) as scratch:
            copy = scratch / "copy"
            _copy(path, copy)
            copy.rename(_FOLDER / _name(key, copy))  # At once: nobody sees a part of it.
        _forget()


def _name(key: str, path: Path) -> str:
    return f"{key}{_HASHED}{measure(path)[1]}"


def _forget() -> None:
    total = 0
    for kept in sorted(_FOLDER.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True):
        total += measure(kept)[0]
        if total > KEPT_BYTES:
            discard(kept)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def discard(path: Path) -> None:
    """Removes a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
