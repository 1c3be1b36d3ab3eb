"""What the package asks of disks: folders that have an owner, and a word when one is full.

A folder is owned by an advisory lock on the folder itself, which needs no file and ends with its
owner, however that dies. Where the system or the file system has no such locks, nobody is kept
out, and nothing of others is removed.
"""

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exporter.errors import DiskError

if sys.platform != "win32":
    import fcntl

SCRATCH = "exporter-scratch-"
"""How the names of folders for temporary files begin."""

_PATIENCE = 1.0
"""Seconds to wait for a lock: whoever looks whether it is free holds it for a moment."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WORDS = tuple(os.strerror(number) for number in _FULL)
_NEXT_TO_NOTHING = 2**16
"""Free bytes below which a disk is taken to be full when something failed."""

_held: set[int] = set()


def _forget() -> None:
    # A fork shares the locks; its own end must not be waited for.
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)


def _lock(folder: Path) -> int | None:
    """Takes the lock of a folder; returns None where there are no locks.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If there is no such folder, or it may not be read.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except OSError as error:
        _unlock(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None  # A network's file system, for one.
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None and descriptor in _held:  # Not so in a fork.
        _held.remove(descriptor)
        if sys.platform != "win32":
            # Closing would do, but for a fork that holds a copy.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Keeps others out of a folder while the block lasts; yields whether that is possible.

    Raises:
        BlockingIOError: If another process, or another block of this one, owns the folder.
    """
    patient_until = time.monotonic() + _PATIENCE
    while True:
        try:
            lock = _lock(folder)
            break
        except BlockingIOError:
            if time.monotonic() > patient_until:
                raise
            time.sleep(0.02)
    try:
        yield lock is not None
    finally:
        _unlock(lock)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yields a new folder for temporary files, which is removed when the block ends.

    Those of processes that were killed are removed by ``remove_abandoned``.

    Args:
        parent: Where to make it; by default where temporary files belong.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
        try:
            lock = _lock(folder)
            break
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process found it without an owner, and removes it.
    try:
        yield folder
    finally:
        # What cannot be removed now is removed by a later run.
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def replace_text(path: Path, text: str) -> None:
    """Writes a file at once, so that a former one is lost only when the new one is whole."""
    with scratch_folder(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
        (folder / path.name).replace(path)


def remove_abandoned(parent: Path) -> None:
    """Removes the folders of ``scratch_folder`` whose owner has died."""
    for folder in folders_named(parent, SCRATCH):
        with suppress(OSError):  # It has an owner, or another run has removed it meanwhile.
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                _unlock(lock)


def folders_named(parent: Path, prefix: str) -> list[Path]:
    """Lists folders of this user that ``tempfile.mkdtemp`` made with a prefix."""
    name, found = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}"), []
    with suppress(OSError), os.scandir(parent) as entries:  # None, or none to be read.
        for entry in entries:
            with suppress(FileNotFoundError):
                if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    mine = sys.platform == "win32" or entry.stat().st_uid == os.geteuid()
                    found += [Path(entry.path)] if mine else []
    return sorted(found)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    inner = path.rglob("*") if path.is_dir() else ()
    for each in (*inner, path):
        if stat.S_ISREG(each.lstat().st_mode) or (each.is_dir() and sys.platform != "win32"):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def disk_error(error: BaseException, *folders: Path) -> DiskError | None:
    """Returns the error of a full disk that stands behind another one; None if none does.

    Args:
        error: What was raised; its causes are looked at as well.
        folders: Where files were written, if the error does not tell.
    """
    for each in _causes(error):
        if isinstance(each, DiskError):
            return each
        number = each.errno if isinstance(each, OSError) else None
        if number in _FULL or any(word in str(each) for word in _WORDS):
            name = each.filename if isinstance(each, OSError) else None
            places = [Path(name)] if isinstance(name, str) else [*folders, temporary()]
            return _full(min(places, key=free_bytes), os.strerror(number or errno.ENOSPC))
    return None


def full_disk(*folders: Path) -> DiskError | None:
    """Returns the error of the first of some disks that is full; None if there is room on all."""
    full = (folder for folder in folders if free_bytes(folder) < _NEXT_TO_NOTHING)
    return next((_full(each, os.strerror(errno.ENOSPC)) for each in full), None)


def free_bytes(path: Path) -> int:
    """Returns the bytes that may still be written where a file is, or would be."""
    return shutil.disk_usage(_existing(path)).free


def temporary() -> Path:
    """Returns the folder where temporary files belong."""
    return Path(tempfile.gettempdir())


def _full(place: Path, reason: str) -> DiskError:
    usage = shutil.disk_usage(_existing(place))
    return DiskError(
        f"{reason}: {str(place)!r} cannot be written. Its disk has {usage.free:,} of "
        f"{usage.total:,} bytes free, and more are needed. Make room there, or choose another "
        "place: --output for artifacts, TMPDIR for temporary files; the cache is artifacts/cache "
        "in the current folder."
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
