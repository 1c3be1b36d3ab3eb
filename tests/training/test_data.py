"""Batches for training."""

import keras
import numpy as np
import pytest

from exporter.data import load_dataset
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.training.data import TrainingData
from exporter.training.objective import Objective


@pytest.fixture(scope="module")
def network():
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="classes")]
    return Network(keras.Sequential([keras.Input((8, 8, 1)), *layers]))


@pytest.fixture(scope="module")
def data(network):
    """Makes training data of 40 samples, in batches of 16."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 60)
    arrays = {"x_train": x[:40], "y_train": y[:40], "x_val": x[40:50], "y_val": y[40:50]}
    dataset = fitted(load_dataset({**arrays, "x_test": x[50:], "y_test": y[50:]}), network)

    def make(augment="none"):
        objective = Objective(network.families(dataset.tasks), {}, 0.5, 2.0, dataset.tasks)
        return TrainingData(dataset, network, objective, 16, seed=0, augment=augment)

    return make


def only(arrays):
    (array,) = arrays.values()
    return array


@pytest.mark.parametrize("augment", ["none", "flip+shift"])
def test_the_baseline_sees_the_images_that_are_trained_on(augment, data, network):
    for batch in data(augment).batches(epoch=1, start=0):
        expected = only(network.runner()(batch.inputs))
        np.testing.assert_allclose(only(batch.teacher), expected, atol=1e-6)


def test_images_differ_from_epoch_to_epoch_and_not_from_run_to_run(data):
    def images(epoch, start=0):
        batches = data("shift").batches(epoch=epoch, start=start)
        return [only(batch.inputs) for batch in batches]

    first = images(1)
    for one, again in zip(first, images(1), strict=True):
        np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(images(1, start=1)[0], first[1])
    assert sorted(map(float, np.concatenate(images(2)).sum((1, 2, 3)))) != sorted(
        map(float, np.concatenate(first).sum((1, 2, 3)))
    )


def test_what_is_not_taught_needs_no_baseline(data):
    batch = next(data("flip").batches(epoch=1, start=0, taught=False))
    assert not batch.teacher
    assert only(batch.labels).shape == (16,)
