"""Folders with an owner, and the errors of disks that are full."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.disk import (
    SCRATCH,
    disk_error,
    free_bytes,
    full_disk,
    owned,
    remove_abandoned,
    scratch_folder,
)
from exporter.errors import ConversionError, OutputError


def test_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path) as possible:
        assert possible
        with pytest.raises(BlockingIOError), owned(tmp_path):
            pass
    with owned(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
def test_fork_does_not_keep_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from exporter.disk import owned\n"
        "with owned(Path(sys.argv[1])):\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60)\n"
        "    os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        fork = int(parent.stdout.readline())
        parent.wait()
        try:
            with owned(tmp_path) as possible:
                assert possible
        finally:
            os.kill(fork, 9)


def test_scratch_of_the_living_stays_and_that_of_the_dead_goes(tmp_path: Path) -> None:
    abandoned, others = tmp_path / f"{SCRATCH}0123456_", tmp_path / f"{SCRATCH}of-mine"
    for folder in (abandoned, others):
        folder.mkdir()
        (folder / "file").write_text("left")
    with scratch_folder(tmp_path) as scratch:
        remove_abandoned(tmp_path)
        assert set(tmp_path.iterdir()) == {scratch, others}
    assert set(tmp_path.iterdir()) == {others}


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / f"{SCRATCH}01234567").symlink_to(tmp_path / "mine")
    remove_abandoned(tmp_path)

    assert (tmp_path / "mine").is_dir()
    assert len(list(tmp_path.iterdir())) == 2


def _chained(cause: BaseException) -> BaseException:
    try:
        raise ConversionError("A converter failed.") from cause
    except ConversionError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "there/file"),
        _chained(OSError(errno.EDQUOT, "Disk quota exceeded")),
        RuntimeError("UNKNOWN: write failed: No space left on device; 4096 bytes"),
    ],
)
def test_full_disk_is_found_behind_any_error_and_names_place_and_bytes(
    error: BaseException, tmp_path: Path
) -> None:
    found = disk_error(error, tmp_path)
    assert isinstance(found, OutputError)
    assert f"of {shutil.disk_usage(tmp_path).total:,} bytes free" in str(found)
    assert "TMPDIR" in str(found)


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    assert disk_error(OSError(errno.EIO, "Input/output error"), tmp_path) is None
    assert disk_error(_chained(ValueError("no"))) is None
    assert full_disk(tmp_path) is None
    assert free_bytes(tmp_path / "not" / "there") > 0
