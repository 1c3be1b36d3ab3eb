"""What is refused before it is read: paths, bombs, and JSON without end."""

import os
import socket
import zipfile
from dataclasses import dataclass
from typing import Literal

import h5py
import numpy as np
import pytest

from exporter.errors import RecipeError
from exporter.inputs import (
    FREE_BYTES,
    check_archive,
    check_hdf5,
    checked_path,
    made_of,
    parse_json,
    read_json,
)


class TestPaths:
    @pytest.mark.parametrize("path", ["nothing", "nothing/below", "file/below", "", "\udcff.npz"])
    def test_what_does_not_exist_is_for_others_to_refuse(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("")
        assert checked_path(path) == path

    def test_files_and_folders_are_taken(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "file"):
            assert checked_path(str(path)) == str(path)

    @pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, "d/" * 4000])
    def test_what_can_be_no_path(self, path):
        with pytest.raises(RecipeError, match="must have a path that can be followed"):
            checked_path(path)

    def test_a_loop_of_links(self, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(RecipeError, match="Too many levels of symbolic links"):
            checked_path(str(tmp_path / "loop"))

    def test_devices_pipes_and_sockets(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
        (tmp_path / "link").symlink_to("/dev/zero")
        for path in ("/dev/zero", "pipe", "socket", "link"):
            with pytest.raises(RecipeError, match="a device, a pipe or a socket"):
                checked_path(path)


class TestArchives:
    def test_small_ones_may_unpack_to_anything(self, tmp_path):
        file = tmp_path / "a.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(10**7))
        with zipfile.ZipFile(file) as archive:
            check_archive(file, archive)

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
    def test_members_that_would_be_larger_than_the_file_allows(self, tmp_path, method):
        file = tmp_path / "a.zip"
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("zeros", bytes(1000))
        with zipfile.ZipFile(file) as archive:
            archive.infolist()[0].file_size = FREE_BYTES + 1  # As its directory may tell.
            with pytest.raises(ValueError, match=r"would unpack to|longer than itself"):
                check_archive(file, archive)


class TestHdf5:
    @pytest.mark.parametrize(
        ("link", "told"),
        [
            (h5py.ExternalLink("/etc/passwd", "/"), "links to another place or file"),
            (h5py.SoftLink("/"), "links to another place or file"),
        ],
    )
    def test_links(self, tmp_path, link, told):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_group("inner")["link"] = link
            with pytest.raises(ValueError, match=told):
                check_hdf5(tmp_path / "a.h5", file)

    def test_arrays_in_other_files(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])
            with pytest.raises(ValueError, match="stored in another file"):
                check_hdf5(tmp_path / "a.h5", file)

    def test_shapes_without_content(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("x", (2**30,), "f4", chunks=True)
            with pytest.raises(ValueError, match="would unpack to"):
                check_hdf5(tmp_path / "a.h5", file)

    def test_an_array_under_two_names_is_one(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["x"] = np.zeros(10)
            file["y"] = file["x"]
            file["loop"] = file["/"]
            check_hdf5(tmp_path / "a.h5", file)


class TestJson:
    @pytest.mark.parametrize("text", ["[" * 100_000, "", "{", b"\xff", "9" * 5000, b"\0"])
    def test_all_faults_are_value_errors(self, text, tmp_path):
        with pytest.raises(ValueError):
            parse_json(text)
        (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError):
            read_json(tmp_path / "a.json")

    def test_too_long(self, tmp_path, monkeypatch):
        monkeypatch.setattr("exporter.inputs.JSON_BYTES", 10)
        assert parse_json("[1, 2, 3]") == [1, 2, 3]
        with pytest.raises(ValueError, match="more than 10 bytes"):
            parse_json("[1, 2, 3, 4]")


@dataclass(frozen=True)
class Record:
    count: int
    part: float | None = None
    name: Literal["a", "b"] = "a"


class TestRecords:
    def test_of_the_right_types(self):
        assert made_of(Record, {"count": 1, "part": 2, "name": "b"}) == Record(1, 2, "b")
        assert made_of(Record, {"count": 1, "part": None}) == Record(1)

    @pytest.mark.parametrize(
        "values",
        [
            None,
            [],
            {},
            {"count": "1"},
            {"count": True},
            {"count": 1.0},
            {"count": 10**400},
            {"count": 1, "part": float("nan")},
            {"count": 1, "part": 10**400},
            {"count": 1, "name": "c"},
            {"count": 1, "name": []},
            {"count": 1, "other": 2},
        ],
    )
    def test_of_others(self, values):
        with pytest.raises(ValueError, match="it has"):
            made_of(Record, values)
