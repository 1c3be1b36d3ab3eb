"""What a checkpoint keeps, and what it survives."""

import numpy as np
import pytest

from exporter.errors import OutputError
from exporter.progress import Silent
from exporter.training.checkpoint import Checkpoint, check_like, load_checkpoint, save_checkpoint


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def load(file, progress=None):
    return load_checkpoint(file, lambda found: found, progress or Silent())


def checkpoint(value):
    return Checkpoint(
        state=[np.full((2, 3), value, np.float32), np.array([1, 2], np.uint32)],
        optimizer=[np.array(7, np.int64), *(np.full(2, index) for index in range(12))],
        best=[],
        progress={"epoch": 3, "loss": 0.1},
    )


def test_is_the_same_after_a_trip_to_a_file(tmp_path):
    file = tmp_path / "folder" / "factored.npz"
    save_checkpoint(checkpoint(1.5), file)
    loaded = load(file)
    for part in ("state", "optimizer", "best"):
        wanted = getattr(checkpoint(1.5), part)
        for one, other in zip(wanted, getattr(loaded, part), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert loaded.progress == {"epoch": 3, "loss": 0.1}
    assert [path.name for path in file.parent.iterdir()] == ["factored.npz"]


def test_there_may_be_none(tmp_path):
    assert load(tmp_path / "factored.npz") is None


def test_the_former_one_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    file = tmp_path / "factored.npz"
    save_checkpoint(checkpoint(1.0), file)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint(2.0), file)
    assert load(file).state[0][0, 0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["factored.npz"]


def test_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"The checkpoint .* cannot be written"):
        save_checkpoint(checkpoint(1.0), tmp_path / "file" / "factored.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", bytes(1000)])
def test_a_damaged_one_is_none_and_is_told_of(tmp_path, content):
    file, progress = tmp_path / "factored.npz", Notes()
    file.write_bytes(content)
    assert load(file, progress) is None
    assert "factored.npz is damaged, training starts anew: " in progress.notes[0]


def test_one_that_cannot_be_used_is_damaged(tmp_path):
    file, progress = tmp_path / "factored.npz", Notes()
    save_checkpoint(checkpoint(1.5), file)

    def read(found):
        check_like(found.state, [np.zeros((3, 3))])

    assert load_checkpoint(file, read, progress) is None
    assert "not those of this training" in progress.notes[0]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2)), np.full(3, np.nan), np.array(["a", "b", "c"]), np.array(1.0)]
)
def test_arrays_of_other_shapes_or_without_numbers_are_not_like_variables(array):
    check_like([np.ones(3)], [np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match="not those of this training"):
        check_like([array], [np.zeros(3)])
