"""A baseline that knows nothing of the labels is noticed, and no other one."""

import keras
import numpy as np
import pytest
from keras import layers

from exporter.data import load_dataset
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.verification.baseline import judge_baseline

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 4)).astype("float32")
Y = X[:, :3].argmax(axis=1)


def answering(weights, activation="softmax", bias=None):
    """A model of one layer with the given weights."""
    weights = np.asarray(weights, "float32")
    layer = layers.Dense(weights.shape[1], activation, name="p")
    model = keras.Sequential([keras.Input((4,), name="x"), layer])
    layer.set_weights([weights, np.zeros(weights.shape[1]) if bias is None else np.asarray(bias)])
    return Network(model)


def judge(network, y, x=X, loss=None):
    return judge_baseline(network, fitted(load_dataset({"x": x, "y": y}), network, loss=loss))


KNOWS = 3 * np.eye(4)[:, :3]


def test_a_model_that_knows_the_labels_passes():
    verdict = judge(answering(KNOWS), Y)
    assert verdict.passed
    assert [each.part for each in verdict.outputs] == ["train", "validation", "test"]
    assert "accuracy of 'p' on 288 samples (train) 100.00%" in verdict.told


def test_a_model_that_answers_the_same_everywhere_does_not():
    verdict = judge(answering(np.zeros((4, 3)), bias=[0, 1, 0]), Y)
    assert not verdict.passed
    assert not any(each.reordered for each in verdict.outputs)


def test_another_order_of_classes_is_told():
    verdict = judge(answering(KNOWS[:, [1, 2, 0]]), Y)
    assert not verdict.passed
    assert all(each.reordered for each in verdict.outputs)


def test_labels_that_have_nothing_to_do_with_the_inputs_do_not_pass():
    assert not judge(answering(KNOWS), RNG.integers(0, 3, len(X))).passed


def test_rare_classes_need_not_be_found_more_often_than_the_common_one():
    """95 % are of one class, which is always predicted, with probabilities that tell something."""
    y = (X[:, 0] > 1.6).astype(int)
    assert judge(answering([[2.0], [0], [0], [0]], "sigmoid", [-5.0]), y).passed
    assert not judge(answering([[0.0], [0], [0], [0]], "sigmoid", [-9.0]), y).passed


def test_values_are_held_against_their_mean():
    y = X @ np.array([[1.0], [2], [0], [0]])
    assert judge(answering([[1.0], [1.8], [0], [0]], None), y).passed
    assert not judge(answering([[1.0], [1.8], [0], [0]], None, [90.0]), y).passed
    assert not judge(answering([[100.0], [200], [0], [0]], None), y).passed


def test_predictions_that_are_not_finite_do_not_pass():
    assert not judge(answering(np.full((4, 3), np.nan)), Y).passed


@pytest.mark.parametrize("y", [np.zeros(400, int), None], ids=["one class", "no labels"])
def test_nothing_is_judged_where_nothing_can_be_told(y):
    network = answering(KNOWS)
    arrays = {"x": X} if y is None else {"x": X, "y": y}
    verdict = judge_baseline(network, fitted(load_dataset(arrays), network))
    assert verdict.passed
    assert verdict.outputs == ()


def test_few_samples_need_not_be_beyond_doubt():
    assert judge(answering(KNOWS), Y[:30], X[:30]).passed
