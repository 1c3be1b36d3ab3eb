import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.data import Split
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.training.augmentation import SHIFT, augmented, check_augmentation


def images(samples=64, height=16, width=24):
    """Images that differ in every pixel."""
    shape = (samples, height, width, 1)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def changed(augment, seed=0, **arrays):
    return augmented(arrays, augment, np.random.default_rng(seed))


def test_a_flip_mirrors_about_half_of_the_images():
    before = images()
    after = changed("flip", x=before)["x"]
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(after, before, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


@given(seed=st.integers(0, 1000), height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_shift_moves_by_at_most_an_eighth(seed, height, width):
    before = images(4, height, width)
    after = changed("shift", seed, x=before)["x"]
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    for was, now in zip(before, after, strict=True):
        places = {value: np.argwhere(was == value)[0] for value in now.ravel().tolist()}
        rows = [places[value][0] - row for (row, _, _), value in np.ndenumerate(now)]
        columns = [places[value][1] - column for (_, column, _), value in np.ndenumerate(now)]
        # Pixels beyond the edge are mirrored, so that most of them say how far it was.
        assert min(map(abs, rows)) <= height // SHIFT
        assert min(map(abs, columns)) <= width // SHIFT
        assert len(np.unique(now)) >= len(np.unique(was)) * 0.7


def test_images_of_a_sample_change_alike_and_others_not_at_all():
    vectors = np.ones((64, 3), np.float32)
    after = changed("flip+shift", left=images(), right=images(), vector=vectors)
    np.testing.assert_array_equal(after["left"], after["right"])
    assert not np.array_equal(after["left"], images())
    assert after["vector"] is vectors


def test_the_same_seed_gives_the_same_images():
    first, again, other = (changed("flip+shift", seed, x=images())["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def network(*layers, shape=(8, 8, 3)):
    return Network(keras.Sequential([keras.Input(shape), *layers]))


def test_what_has_no_images_is_refused():
    train = Split({"x": np.zeros((2, 8))}, {})
    with pytest.raises(DataError, match=r"changes images.*Received: inputs of shapes \[\[8\]\]"):
        check_augmentation("flip", network(keras.layers.Dense(2), shape=(8,)), train)


def test_labels_of_places_are_refused():
    train = Split({"x": np.zeros((2, 8, 8, 3))}, {"y": np.zeros((2, 8, 8))})
    segmenter = network(keras.layers.Conv2D(1, 3, padding="same"))
    with pytest.raises(DataError, match=r"belong to places.*Received: y.*tf\.data"):
        check_augmentation("shift", segmenter, train)
    check_augmentation("none", segmenter, train)
