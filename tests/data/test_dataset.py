import gc
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.data import ArraySource, Dataset, LazyArray, Split, files, load_dataset
from exporter.data.dataset import READ_AHEAD, read_ahead
from exporter.data.files import ArrayRows


def numbered_split(count, lazy):
    x = np.stack([np.arange(count), np.zeros(count)], axis=1)
    return Split({"x": LazyArray(ArrayRows(x)) if lazy else x}, {"y": np.arange(count)})


def numbers(batches):
    """Numbers of the samples in each batch, which the labels tell as well."""
    listed = [batch.inputs["x"][:, 0].astype(int).tolist() for batch in batches]
    assert listed == [batch.labels["y"].tolist() for batch in batches]
    return listed


def epoch(source, size, seed=0, number=0, start=0):
    return numbers(list(source.batches(size, seed=seed, epoch=number, start=start)))


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 50),
    seed=st.integers(0, 5),
    number=st.integers(0, 5),
    start=st.integers(0, 8),
)
def test_an_epoch_is_a_permutation_of_seed_and_number(count, size, seed, number, start):
    eager, lazy = (ArraySource(numbered_split(count, kind)) for kind in (False, True))
    batches = epoch(eager, size, seed, number)
    assert (
        list(itertools.chain(*batches))
        == np.random.default_rng([seed, number]).permutation(count).tolist()
    )
    assert all(len(batch) == size for batch in batches[:-1])
    assert epoch(lazy, size, seed, number) == batches
    # To go on is to see the rest of the epoch, and nothing else.
    assert epoch(eager, size, seed, number, start) == batches[start:]
    assert epoch(lazy, size, seed, number, start) == batches[start:]
    assert eager.samples == lazy.samples == count


def test_epochs_and_seeds_have_orders_of_their_own():
    source = ArraySource(numbered_split(100, False))
    orders = [epoch(source, 100, seed, number) for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({str(order) for order in orders}) == 4


def test_batches_are_in_memory():
    (batch,) = ArraySource(numbered_split(6, True)).batches(6, seed=0, epoch=0)
    assert type(batch.inputs["x"]) is np.ndarray
    assert not batch.is_lazy


class TestReadAhead:
    def test_keeps_the_order(self):
        def read(number):
            time.sleep(0.001 * (number % 3))
            return number

        reads = (lambda number=number: read(number) for number in range(20))
        assert list(read_ahead(reads)) == list(range(20))
        assert not readers()

    def test_is_a_few_batches_ahead_and_no_more(self):
        done = []
        results = read_ahead(lambda number=number: done.append(number) for number in range(20))
        next(results)
        deadline = time.monotonic() + 5
        while len(done) < 1 + READ_AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert done == list(range(1 + READ_AHEAD))
        results.close()

    def test_errors_of_the_reader_come_where_the_batch_would(self):
        def fail():
            raise OSError("disk on fire")

        results = read_ahead([lambda: 1, lambda: 2, fail, lambda: 4])
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(OSError, match="disk on fire"):
            next(results)
        assert not readers()

    def test_the_thread_ends_when_nobody_listens(self):
        source = ArraySource(numbered_split(100, True))
        batches = source.batches(2, seed=0, epoch=0)
        next(batches)
        assert readers()
        batches.close()
        assert not readers()
        for _ in source.batches(2, seed=0, epoch=0):
            break
        gc.collect()
        assert not readers()

    def test_arrays_in_memory_need_no_thread(self):
        batches = ArraySource(numbered_split(100, False)).batches(2, seed=0, epoch=0)
        next(batches)
        assert not readers()


class TestOfADataset:
    ARRAYS = {"x": np.arange(250, dtype="uint8").reshape(10, 5, 5), "y": np.arange(10)}  # noqa: RUF012

    @pytest.mark.parametrize("large", [False, True])
    def test_is_fitted_like_the_training_part(
        self, save_npz, monkeypatch, large, spec, fitted_and_scaled
    ):
        if large:
            monkeypatch.setattr(files, "LARGE_BYTES", 0)
        dataset = load_dataset(save_npz(**self.ARRAYS))
        fitted = fitted_and_scaled(dataset, [spec("image", (5, 5, 1))], [spec("p", (10,))])
        (batch,) = fitted.source.batches(10, seed=3, epoch=1)
        order = np.random.default_rng([3, 1]).permutation(len(fitted.train))
        np.testing.assert_array_equal(batch.inputs["image"], fitted.train.inputs["image"][order])
        np.testing.assert_array_equal(batch.labels["p"], fitted.train.labels["p"][order])
        assert batch.inputs["image"].max() <= 1

    def test_is_none_without_a_training_part(self):
        assert load_dataset("none").source is None
        assert load_dataset({"x_test": np.ones((3, 2))}).source is None
        assert Dataset("d", None, None, numbered_split(3, False), "digest").source is None
