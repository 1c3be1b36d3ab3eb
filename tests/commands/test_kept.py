import os

import pytest

from exporter.commands import kept
from exporter.commands.kept import fetch, keep


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "_FOLDER", tmp_path / "kept")
    return tmp_path / "kept"


def made(tmp_path, name, content=b"content"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_files_and_folders_come_back(tmp_path):
    (tmp_path / "tree").mkdir()
    keep("file", made(tmp_path, "a"))
    keep("tree", made(tmp_path / "tree", "b").parent)
    assert fetch("file", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"content"
    assert fetch("tree", tmp_path / "d")
    assert (tmp_path / "d" / "b").read_bytes() == b"content"


def test_nothing_is_written_where_nothing_is_kept(tmp_path):
    assert not fetch("file", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_was_used_last_stays(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "KEPT_BYTES", 20)
    for number, name in enumerate(("old", "used")):
        keep(name, made(tmp_path, name))
        (file,) = folder.glob(f"{name}.*")
        os.utime(file, (number, number))
    assert fetch("old", tmp_path / "again")
    keep("new", made(tmp_path, "new"))
    assert sorted(path.stem for path in folder.iterdir()) == ["new", "old"]


def test_two_runs_may_keep_the_same(folder, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    made(tree, "b")
    keep("tree", tree)
    keep("tree", tree)
    assert [path.stem for path in folder.iterdir()] == ["tree"]


@pytest.mark.parametrize("content", [b"", b"other", b"content and more"])
def test_what_is_damaged_is_not_there_and_is_kept_anew(folder, tmp_path, content):
    keep("file", made(tmp_path, "a"))
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert not fetch("file", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    keep("file", made(tmp_path, "a"))
    assert fetch("file", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"content"


def test_a_folder_that_cannot_be_written_keeps_nothing(folder, tmp_path):
    folder.write_bytes(b"a file in its place")
    keep("file", made(tmp_path, "a"))
    assert not fetch("file", tmp_path / "c")
