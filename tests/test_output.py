"""The output folder appears whole or not at all, and nothing else in it is touched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import OutputError
from exporter.output import MANIFEST, check_output, finish_publication, staged_output
from exporter.progress import Silent

ENTRIES = ("model.tflite", "saved_model", "compressed.keras", MANIFEST, "rejected")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, byte for byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_run(folder: Path, mark: str) -> None:
    """Writes what a run writes: files, a folder, and the manifest that lists them."""
    (folder / "model.tflite").write_text(f"model of {mark}")
    (folder / "saved_model" / "variables").mkdir(parents=True)
    (folder / "saved_model" / "variables" / "data").write_text(f"variables of {mark}")
    entries = ["model.tflite", "saved_model", MANIFEST]
    (folder / MANIFEST).write_text(json.dumps({"entries": entries, "mark": mark}))


def publish(target: Path, mark: str, *, force: bool = False) -> None:
    with staged_output(target, ENTRIES, force=force) as staging:
        write_run(staging, mark)


def is_whole(folder: Path, *marks: str) -> bool:
    """Whether a folder holds the files of one of some runs, the user's, and nothing else."""
    mark = json.loads((folder / MANIFEST).read_text())["mark"]
    files = [folder / "model.tflite", folder / "saved_model" / "variables" / "data"]
    names = {path.name for path in folder.iterdir()}
    return (
        mark in marks
        and all(file.read_text().endswith(f" of {mark}") for file in files)
        and names == {"model.tflite", "saved_model", MANIFEST, "notes.txt"}
    )


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """A folder with a former run, and a file of the user's."""
    target = tmp_path / "run"
    publish(target, "former")
    (target / "notes.txt").write_text("mine")
    return target


@pytest.fixture
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes renames from now on fail by their numbers, as on a disk that vanishes."""
    rename = Path.rename

    def fail(*numbers: int, error: type[BaseException] = OSError) -> None:
        count = 0

        def broken(self: Path, target: Path) -> Any:
            nonlocal count
            count += 1
            if count in numbers:
                raise error(5, "Input/output error", str(self))
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", broken)

    return fail


def test_all_that_was_written_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with staged_output(target, ENTRIES, force=False) as staging:
        assert list(staging.iterdir()) == []
        write_run(staging, "new")
        expected = tree(staging)
        assert not any((target / name).exists() for name in ENTRIES)

    assert tree(target) == expected
    assert tree(tmp_path / "deep").keys() == {"run", *(f"run/{name}" for name in expected)}


def test_entries_that_were_not_written_do_not_appear(tmp_path: Path) -> None:
    publish(tmp_path, "new")

    assert not (tmp_path / "compressed.keras").exists()


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("target", [".", "run", "deep/er/run"])
def test_interrupted_block_leaves_no_trace(
    target: str, interruption: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = tree(tmp_path)

    with (
        pytest.raises(interruption),
        staged_output(tmp_path / target, ENTRIES, force=False) as staging,
    ):
        write_run(staging, "new")
        raise interruption

    assert tree(tmp_path) == before


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_interrupted_block_leaves_a_former_run_as_it_was(
    interruption: type[BaseException], former: Path
) -> None:
    before = tree(former)

    with pytest.raises(interruption), staged_output(former, ENTRIES, force=True) as staging:
        write_run(staging, "new")
        raise interruption

    assert tree(former) == before


def test_failure_to_write_is_an_output_error_that_names_file_and_cause(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"No such file or directory.*gone") as caught,
        staged_output(tmp_path / "run", ENTRIES, force=False) as staging,
    ):
        (staging / "gone" / "file").write_text("lost")

    assert isinstance(caught.value.__cause__, OSError)
    assert tree(tmp_path) == {}


def test_former_run_is_refused_by_name(former: Path) -> None:
    before = tree(former)

    with pytest.raises(OutputError, match=r"former run") as caught:
        publish(former, "new")

    message = str(caught.value)
    assert str(former) in message
    assert "--force" in message
    assert all(name in message for name in ("model.tflite", "saved_model", MANIFEST))
    assert "notes.txt" not in message
    assert tree(former) == before


def test_file_that_would_be_overwritten_is_refused_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_text("not of a run")

    with pytest.raises(OutputError, match=r"model\.tflite.*--force"):
        check_output(tmp_path, ENTRIES, force=False)
    assert check_output(tmp_path, ENTRIES, force=True) == ["model.tflite"]


def test_force_replaces_the_former_run_and_nothing_else(former: Path) -> None:
    (former / "mine").mkdir()
    (former / "mine" / "data").write_text("mine")
    publish(former, "new", force=True)

    after = tree(former)
    assert after["model.tflite"] == b"model of new"
    assert after["saved_model/variables/data"] == b"variables of new"
    assert json.loads(after[MANIFEST])["mark"] == "new"
    assert after["notes.txt"] == after["mine/data"] == b"mine"
    assert not any(name.startswith(".") for name in after)


def test_force_removes_what_the_former_run_wrote_and_the_new_one_does_not(former: Path) -> None:
    with staged_output(former, [MANIFEST], force=True) as staging:
        (staging / MANIFEST).write_text('{"entries": ["manifest.json"]}')

    assert set(tree(former)) == {MANIFEST, "notes.txt"}


@pytest.mark.parametrize("force", [False, True])
def test_folder_without_a_run_takes_one_beside_what_is_there(force: bool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    publish(tmp_path, "new", force=force)

    assert tree(tmp_path)["notes.txt"] == b"mine"
    assert (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    "entry",
    [
        "../outside",
        "..",
        ".",
        "",
        "/",
        "inner/file",
        "./notes.txt",
        "../run/notes.txt",
        5,
        None,
        [],
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_manifest_names_nothing_but_entries_of_its_own_folder(
    entry: object, force: bool, tmp_path: Path
) -> None:
    target = tmp_path / "run"
    (target / "inner").mkdir(parents=True)
    for path in (tmp_path / "outside", target / "notes.txt", target / "inner" / "file"):
        path.write_text("mine")
    (target / MANIFEST).write_text(json.dumps({"entries": [entry]}))

    assert check_output(target, ENTRIES, force=True) == [MANIFEST]
    if force:
        publish(target, "new", force=True)
    assert (tmp_path / "outside").read_text() == "mine"
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "inner" / "file").read_text() == "mine"


def test_manifest_with_an_absolute_path_deletes_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    target = tmp_path / "run"
    target.mkdir()
    (target / MANIFEST).write_text(json.dumps({"entries": [str(outside)]}))
    publish(target, "new", force=True)

    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "{}", '{"entries": 5}', '{"entries": null}', "\x00"]
)
def test_file_that_is_no_manifest_of_a_run_is_only_a_file_in_the_way(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text(text)
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"files that the run would write.*manifest\.json"):
        check_output(tmp_path, ENTRIES, force=False)
    publish(tmp_path, "new", force=True)
    assert tree(tmp_path)["notes.txt"] == b"mine"


def test_manifest_may_be_binary(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")

    assert check_output(tmp_path, ENTRIES, force=True) == [MANIFEST]


@pytest.mark.parametrize("target", ["file", "file/run", "file/deep/run"])
def test_target_at_or_below_a_file_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    for force in (False, True):
        with pytest.raises(OutputError, match=r"file"):
            publish(tmp_path / target, "new", force=force)
    assert tree(tmp_path) == {"file": b"mine"}


def test_checking_makes_nothing(tmp_path: Path) -> None:
    assert check_output(tmp_path / "deep" / "run", ENTRIES, force=False) == []
    assert tree(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("target", [".", "run"])
def test_folder_that_may_not_be_written_is_refused(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)

    with pytest.raises(OutputError, match=r"Permission denied"):
        check_output(folder / target, ENTRIES, force=False)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_folder_that_takes_none_whoever_asks_is_refused() -> None:
    with pytest.raises(OutputError, match=r"no folder can be made in /proc"):
        check_output(Path("/proc/run"), ENTRIES, force=False)


# Three renames move the former run aside, three move the new one in.
@pytest.mark.parametrize("number", range(1, 7))
def test_rename_that_fails_rolls_back_to_the_former_run(
    number: int, former: Path, failing_rename: Callable[..., None]
) -> None:
    before = tree(former)
    failing_rename(number)

    with pytest.raises(OutputError, match=r"Input/output error.*Nothing that was there"):
        publish(former, "new", force=True)

    assert tree(former) == before


def test_interruption_between_renames_rolls_back_to_the_former_run(
    former: Path, failing_rename: Callable[..., None]
) -> None:
    before = tree(former)
    failing_rename(5, error=KeyboardInterrupt)

    with pytest.raises(KeyboardInterrupt):
        publish(former, "new", force=True)

    assert tree(former) == before


@pytest.mark.parametrize("number", range(1, 4))
def test_rename_that_fails_leaves_nothing_where_there_was_nothing(
    number: int, tmp_path: Path, failing_rename: Callable[..., None]
) -> None:
    failing_rename(number)

    with pytest.raises(OutputError, match=r"Input/output error"):
        publish(tmp_path / "deep" / "run", "new")

    assert tree(tmp_path) == {}


def test_former_run_that_cannot_be_put_back_is_kept(
    former: Path, failing_rename: Callable[..., None]
) -> None:
    failing_rename(5, 6)

    with pytest.raises(OutputError, match=r"could not be put back.*kept in .*\.former"):
        publish(former, "new", force=True)

    (aside,) = former.glob(".staging-*/.former")
    assert (aside / "model.tflite").read_text() == "model of former"
    assert (aside / "saved_model" / "variables" / "data").read_text() == "variables of former"
    finish_publication(former)
    assert is_whole(former, "new")


def test_manifest_is_moved_last(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    moved = []

    def listening(self: Path, target: Path) -> Any:
        if self.parent.name.startswith(".staging-"):
            moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", listening)
    publish(former, "new", force=True)

    assert moved == ["model.tflite", "saved_model", MANIFEST]


_FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from exporter.errors import OutputError
from exporter.output import staged_output

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with staged_output(Path(sys.argv[1]), ["model.tflite"], force=True) as staging:
        (staging / "model.tflite").write_bytes(bytes(5000))
except OutputError as error:
    print(error)
"""


def test_full_disk_is_an_output_error_and_changes_nothing(former: Path) -> None:
    before = tree(former)
    completed = subprocess.run(
        [sys.executable, "-c", _FILL_THE_DISK, str(former)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "File too large" in completed.stdout
    assert "Nothing that was there has been changed" in completed.stdout
    assert tree(former) == before


_DIES = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[3])
from test_output import publish

rename, left = Path.rename, int(sys.argv[2])


def deadly(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)


Path.rename = deadly
publish(Path(sys.argv[1]), "new", force=True)
"""


def die_before(number: int, target: Path) -> None:
    """Publishes in a process that is killed before a rename."""
    command = [sys.executable, "-c", _DIES, str(target), str(number), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


# As many renames as there are, three out and three in; the commit is none of them.
@pytest.mark.parametrize("number", range(6))
def test_publication_that_was_killed_is_finished_by_the_next_check(
    number: int, former: Path
) -> None:
    die_before(number, former)
    if (former / MANIFEST).exists():
        assert json.loads((former / MANIFEST).read_text())["mark"] == "former"
        assert number == 0

    with pytest.raises(OutputError, match="former run"):
        check_output(former, ENTRIES, force=False)
    assert is_whole(former, "new")


def test_finished_publication_is_told(former: Path) -> None:
    notes: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    die_before(3, former)
    finish_publication(former, Listener())
    finish_publication(former, Listener())

    assert is_whole(former, "new")
    assert len(notes) == 1
    assert "the move is finished now" in notes[0]


def test_publication_can_be_killed_while_it_is_finished(
    former: Path, failing_rename: Callable[..., None]
) -> None:
    die_before(1, former)
    failing_rename(3)
    with pytest.raises(OutputError, match=r"cannot be moved.*Input/output error"):
        finish_publication(former)

    finish_publication(former)
    assert is_whole(former, "new")


def test_damaged_journal_is_an_error_and_loses_nothing(former: Path) -> None:
    die_before(1, former)
    (staging,) = former.glob(".staging-*")
    (staging / ".journal").write_text("{")

    with pytest.raises(OutputError, match=r"killed.*\.staging-.*Move or remove"):
        finish_publication(former)
    assert staging.exists()


_HOLDS = """
import sys, time
from pathlib import Path
from exporter.disk import scratch_folder
from exporter.output import staged_output

with staged_output(Path(sys.argv[1]), ["model.tflite"], force=True) as staging:
    with scratch_folder() as scratch:
        (staging / "model.tflite").write_text("half")
        (scratch / "file").write_text("half")
        print(scratch, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path, former: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another process that writes to the folder, and where it has its temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(former)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_second_run_is_refused_and_takes_nothing_from_the_first(
    other: tuple[Any, Path], former: Path
) -> None:
    process, scratch = other
    with pytest.raises(OutputError, match=r"Another run is writing.*--output"):
        check_output(former, ENTRIES, force=True)
    with pytest.raises(OutputError, match=r"Another run is writing"):
        publish(former, "new", force=True)
    publish(former.parent / "elsewhere", "new")

    assert (scratch / "file").exists()
    assert list(former.glob(".staging-*/model.tflite"))
    assert process.poll() is None


def test_next_run_removes_what_a_dead_one_left(other: tuple[Any, Path], former: Path) -> None:
    process, scratch = other
    process.kill()
    process.wait()
    assert scratch.exists()
    publish(former, "new", force=True)

    assert is_whole(former, "new")
    assert list(scratch.parent.iterdir()) == []


def test_folder_that_only_looks_alike_is_kept(former: Path) -> None:
    for name in (".staging-of-mine", ".staging-area"):
        (former / name).mkdir()
    publish(former, "new", force=True)

    assert {".staging-of-mine", ".staging-area"} < tree(former).keys()
