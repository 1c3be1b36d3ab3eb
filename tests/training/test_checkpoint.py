"""What a checkpoint keeps, and what it survives."""

import numpy as np
import pytest

from exporter.errors import OutputError
from exporter.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


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
    loaded = load_checkpoint(file)
    for part in ("state", "optimizer", "best"):
        wanted = getattr(checkpoint(1.5), part)
        for one, other in zip(wanted, getattr(loaded, part), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert loaded.progress == {"epoch": 3, "loss": 0.1}
    assert [path.name for path in file.parent.iterdir()] == ["factored.npz"]


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path / "factored.npz") is None


def test_the_former_one_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    file = tmp_path / "factored.npz"
    save_checkpoint(checkpoint(1.0), file)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint(2.0), file)
    assert load_checkpoint(file).state[0][0, 0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["factored.npz"]


def test_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"The checkpoint .* cannot be written"):
        save_checkpoint(checkpoint(1.0), tmp_path / "file" / "factored.npz")
