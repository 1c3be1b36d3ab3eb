import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.data import LazyArray, Split, in_memory, loaded_if_small
from exporter.data import lazy as lazy_module
from exporter.data.lazy import chunks, mapped


class Recorder:
    """Rows in memory that remember what was read."""

    def __init__(self, array):
        self.array, self.reads = array, []

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)

    def read(self, rows):
        self.reads.append(rows)
        return self.array[rows].copy()


@pytest.fixture
def recorder():
    return Recorder(np.arange(60).reshape(20, 3))


@st.composite
def keys(draw, count):
    """A slice, or numbers in any order, of ``count`` samples."""
    if draw(st.booleans()) or not count:
        return draw(st.slices(count))
    return np.array(draw(st.lists(st.integers(-count, count - 1), max_size=30)), int)


@given(data=st.data())
def test_samples_are_those_that_numpy_selects(data):
    array = np.arange(60).reshape(20, 3)
    lazy = LazyArray(Recorder(array))
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(keys(len(array)))
        array, lazy = array[key], lazy.take(key)
    assert lazy.shape == array.shape
    assert len(lazy) == len(array)
    assert lazy.ndim == array.ndim
    key = data.draw(keys(len(array)))
    values = lazy[key]
    assert type(values) is np.ndarray
    np.testing.assert_array_equal(values, array[key])
    np.testing.assert_array_equal(np.asarray(lazy), array)
    if len(array):
        assert (lazy.min(), lazy.max()) == (array.min(), array.max())


def test_selecting_and_transforming_read_nothing(recorder):
    split = Split({"x": LazyArray(recorder)}, {"y": np.arange(20)})
    taken = split.take(np.array([3, 1, 2])).take(slice(2))
    array = taken.inputs["x"].map(lambda rows: (rows[..., np.newaxis] / 2).astype("float32"))
    assert recorder.reads == []
    assert (array.shape, array.dtype) == ((2, 3, 1), np.float32)
    assert array.nbytes == 2 * 3 * 4
    assert taken.labels["y"].tolist() == [3, 1]
    assert array[:][:, 0, 0].tolist() == [4.5, 1.5]


def test_numbers_are_read_in_ascending_order(recorder):
    LazyArray(recorder)[np.array([7, 2, 2, 5])]
    (rows,) = recorder.reads
    assert rows.tolist() == [2, 2, 5, 7]


def test_extremes_of_shuffled_samples_are_read_in_ascending_order(recorder):
    assert LazyArray(recorder).take(np.random.default_rng(0).permutation(20)).max() == 59
    assert all((np.diff(rows) > 0).all() for rows in recorder.reads if not isinstance(rows, slice))


@pytest.mark.parametrize("key", [3, np.ones((2, 2), int), np.zeros(20, bool), np.array([0.5])])
def test_other_keys_are_refused(recorder, key):
    for lazy in (LazyArray(recorder), LazyArray(recorder).take(np.arange(20))):
        with pytest.raises(TypeError, match="indexed by a slice or a vector of integers"):
            lazy[key]


@pytest.mark.parametrize("number", [20, -21])
def test_numbers_beyond_the_samples_are_refused(recorder, number):
    for lazy in (LazyArray(recorder), LazyArray(recorder).take(np.arange(20))):
        with pytest.raises(IndexError, match="numbered 0 to 19"):
            lazy[np.array([number])]


def test_functions_are_applied_now_or_when_read(recorder):
    def double(rows):
        return rows * 2

    np.testing.assert_array_equal(
        mapped(LazyArray(recorder), double)[:], mapped(recorder.array, double)
    )


def test_chunks_are_small_and_make_up_the_whole(recorder, monkeypatch):
    monkeypatch.setattr(lazy_module, "CHUNK_BYTES", 3 * 8 * 6)
    for array in (recorder.array, LazyArray(recorder)):
        pieces = list(chunks(array))
        assert [len(piece) for piece in pieces] == [6, 6, 6, 2]
        np.testing.assert_array_equal(np.concatenate(pieces), recorder.array)
    monkeypatch.setattr(lazy_module, "CHUNK_BYTES", 1)
    assert len(list(chunks(recorder.array))) == 20


def test_arrays_are_held_in_memory_if_they_fit(recorder, monkeypatch):
    arrays = {"a": LazyArray(recorder), "b": np.ones(20)}
    assert all(type(array) is np.ndarray for array in loaded_if_small(arrays).values())
    monkeypatch.setattr(lazy_module, "HELD_BYTES", recorder.array.nbytes - 1)
    assert loaded_if_small(arrays) is arrays
    assert all(type(array) is np.ndarray for array in in_memory(arrays).values())
