import math

import numpy as np
import pytest

from exporter.data.metrics import (
    Metric,
    are_probabilities,
    centred_snr_db,
    is_better,
    lost_channels,
    snr_db,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]])
COLUMN = np.array([[0.1], [0.9], [0.6], [0.5]])


def test_more_accuracy_and_less_error_are_better_and_equal_is_not():
    high, low = Metric("accuracy", 0.9, 1), Metric("accuracy", 0.8, 1)
    assert is_better(high, low)
    assert not is_better(low, high)
    assert not is_better(high, high)
    small, large = Metric("mse", 0.1, 1), Metric("mse", 0.2, 1)
    assert is_better(small, large)
    assert not is_better(large, small)
    assert not is_better(small, small)


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


def test_signal_to_noise_ratio_in_decibels():
    reference = np.full((2, 3), 10.0)
    assert snr_db(reference + 1, reference) == pytest.approx(20.0)
    assert snr_db(reference + 0.1, reference) == pytest.approx(40.0)
    assert snr_db(reference, reference) == math.inf
    assert snr_db(reference, np.zeros((2, 3))) == -math.inf


def test_signal_to_noise_ratio_of_half_precision_does_not_overflow():
    reference = np.full((100,), 60000, "float16")
    assert math.isfinite(snr_db(reference - np.float16(1000), reference))


def test_what_varies_is_compared_about_the_mean_of_each_channel():
    rng = np.random.default_rng(0)
    reference = rng.normal([1000.0, -50], [1.0, 1], (4000, 2))
    noisy = reference + rng.normal(0, 0.1, reference.shape)
    assert centred_snr_db(noisy, reference) == pytest.approx(20, abs=0.3)
    assert snr_db(noisy, reference) > 70
    # Where nothing varies, the values themselves are the signal.
    assert centred_snr_db(np.full((5, 1), 9.0), np.full((5, 1), 10.0)) == pytest.approx(20)


def test_a_channel_is_lost_where_noise_hides_what_varies():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 4))
    predictions = reference + rng.normal(size=(500, 4)) * [0.1, 0.4, 0.6, 0]
    assert lost_channels(predictions, reference) == 0.25
    predictions[0, 3] = np.nan
    assert lost_channels(predictions, reference) == 0.5
