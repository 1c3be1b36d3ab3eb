import math

import numpy as np
import pytest

from exporter.data.metrics import (
    Metric,
    are_probabilities,
    is_better,
    is_classes,
    is_one_hot,
    predicted_classes,
    snr_db,
    task_metric,
    top1_agreement,
    trivial_metric,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]])
COLUMN = np.array([[0.1], [0.9], [0.6], [0.5]])


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        (SCORES, np.array([1, 0, 2, 1]), Metric("accuracy", 0.75, 4)),
        (SCORES, np.eye(3)[[1, 0, 0, 0]], Metric("accuracy", 0.75, 4)),
        (COLUMN, np.array([0, 1, 1, 0]), Metric("accuracy", 1.0, 4)),
        (COLUMN, np.array([False, True, False, False]), Metric("accuracy", 0.75, 4)),
        (COLUMN, COLUMN + 0.5, Metric("mse", 0.25, 4)),
        (SCORES, SCORES, Metric("mse", 0.0, 4)),
    ],
    ids=["classes", "one_hot", "binary", "boolean", "regression", "equal"],
)
def test_task_metric(predictions, labels, expected):
    metric = task_metric(predictions, labels)
    assert (metric.name, metric.samples) == (expected.name, expected.samples)
    assert metric.value == pytest.approx(expected.value)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([2, 2, 0, 2]), Metric("accuracy", 0.75, 4)),
        (np.eye(3)[[0, 1, 1, 2]], Metric("accuracy", 0.5, 4)),
        (np.array([[1.0], [3.0]]), Metric("mse", 1.0, 2)),
        # The best constant is one for each column.
        (np.array([[0.0, 10.0], [2.0, 10.0]]), Metric("mse", 0.5, 2)),
    ],
    ids=["classes", "one_hot", "values", "columns"],
)
def test_trivial_metric_is_that_of_the_best_constant(labels, expected):
    assert trivial_metric(labels) == expected


def test_more_accuracy_and_less_error_are_better_and_equal_is_not():
    high, low = Metric("accuracy", 0.9, 1), Metric("accuracy", 0.8, 1)
    assert is_better(high, low)
    assert not is_better(low, high)
    assert not is_better(high, high)
    small, large = Metric("mse", 0.1, 1), Metric("mse", 0.2, 1)
    assert is_better(small, large)
    assert not is_better(large, small)
    assert not is_better(small, small)


def test_predicted_classes_are_the_largest_scores_or_a_half():
    np.testing.assert_array_equal(predicted_classes(SCORES), [1, 0, 2, 0])
    np.testing.assert_array_equal(predicted_classes(COLUMN), [0, 1, 1, 0])
    assert predicted_classes(SCORES[np.newaxis]).shape == (1, 4)


@pytest.mark.parametrize(
    ("labels", "classes", "one_hot"),
    [
        (np.array([1, 2]), True, False),
        (np.array([1, 2], "uint8"), True, False),
        (np.array([True, False]), True, False),
        (np.array([1.0, 2.0]), False, False),
        (np.array([[1], [0]]), False, False),
        (np.eye(3), False, True),
        (np.eye(3, dtype=int), False, True),
        (np.array([[1, 1, 0]]), False, False),
        (np.array([[0, 0, 0]]), False, False),
        (np.array([[0.5, 0.5]]), False, False),
    ],
)
def test_kinds_of_labels(labels, classes, one_hot):
    assert is_classes(labels) is classes
    assert is_one_hot(labels) is one_hot


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (SCORES, True),
        (SCORES.astype("float16"), True),
        (SCORES[np.newaxis], True),
        (SCORES * 1.01, False),
        (SCORES - 0.2, False),
        (COLUMN, False),
        (SCORES * np.nan, False),
        (np.eye(3, dtype=int), False),
        (np.array([0.5, 0.5]), False),
    ],
    ids=["rows", "half", "rank_3", "sum", "negative", "column", "nan", "integers", "vector"],
)
def test_probabilities_are_rows_that_sum_to_one(predictions, expected):
    assert are_probabilities(predictions) is expected


def test_agreement_is_the_part_of_equal_classes():
    assert top1_agreement(SCORES, SCORES) == 1.0
    assert top1_agreement(SCORES, SCORES[::-1]) == 0.0
    assert top1_agreement(SCORES[:2], SCORES[[0, 2]]) == 0.5


def test_signal_to_noise_ratio_in_decibels():
    reference = np.full((2, 3), 10.0)
    assert snr_db(reference + 1, reference) == pytest.approx(20.0)
    assert snr_db(reference + 0.1, reference) == pytest.approx(40.0)
    assert snr_db(reference, reference) == math.inf
    assert snr_db(reference, np.zeros((2, 3))) == -math.inf


def test_signal_to_noise_ratio_of_half_precision_does_not_overflow():
    reference = np.full((100,), 60000, "float16")
    assert math.isfinite(snr_db(reference - np.float16(1000), reference))
