"""Limits for what is quantized, on predictions made by hand."""

import numpy as np
import pytest

from exporter.data import Task
from exporter.formats.variants import QualityRule
from exporter.verification.parity import Execution
from exporter.verification.probes import Probe
from exporter.verification.quality import judge_quality

LENIENT = QualityRule(snr_db=0.0, agreement=0.0, drop=1.0)
SAMPLES = 40


@pytest.fixture
def probe():
    labels = {"scores": np.arange(SAMPLES) % 4}
    return Probe("test", {"x": np.zeros((SAMPLES, 2))}, 8, labels=labels)


@pytest.fixture
def scores():
    """Predictions that are right for all samples."""
    return np.eye(4, dtype=np.float32)[np.arange(SAMPLES) % 4] * 10


def judged(probe, expected, values, rule, *, slow=None):
    outputs, limits = {"fast": {"test": {"scores": values}}}, {"fast": None, "slow": slow}
    if slow is not None:
        outputs["slow"] = {"test": {"scores": values[:slow]}}
    execution = Execution(outputs, {"test": {"scores": expected}}, [probe], limits)
    return judge_quality(execution, rule, {"scores": Task(3)})


def test_measures_noise_agreement_and_loss(probe, scores):
    values = scores.copy()
    values[:4] = values[:4, ::-1]  # Four samples change their class.
    (output,) = judged(probe, scores, values, LENIENT).outputs
    assert output.top1_agreement == 0.9
    assert output.drop == pytest.approx(0.1)
    assert output.snr_db == pytest.approx(10 * np.log10(SAMPLES / 8))
    assert output.samples == SAMPLES


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        (QualityRule(6.9, 0.9, 0.11), True),
        (QualityRule(7.1, 0.9, 0.11), False),
        (QualityRule(6.9, 0.99, 0.11), False),
        (QualityRule(6.9, 0.9, -0.02), False),
    ],
)
def test_every_limit_counts(probe, scores, rule, passed):
    values = scores.copy()
    values[:4] = values[:4, ::-1]
    assert judged(probe, scores, values, rule).passed is passed


def test_classes_that_hardly_lead_may_change(probe, scores):
    """As those of a network near chance do in integers, which is no fault of the artifact."""
    close = np.full_like(scores, 0.25)
    close[:, 0] += 0.003
    close /= close.sum(axis=1, keepdims=True)
    values = close.copy()
    values[:, 1] += 0.004
    (output,) = judged(probe, close, values, QualityRule(30.0, 0.99, 1.0)).outputs
    assert output.top1_agreement == 0.0
    assert output.passed
    clear = close.copy()
    clear[:, 0] += 0.02
    clear /= clear.sum(axis=1, keepdims=True)
    assert not judged(probe, clear, values, QualityRule(0.0, 0.99, 1.0)).passed


def test_equal_predictions_pass_any_limit(probe, scores):
    assert judged(probe, scores, scores, QualityRule(200.0, 1.0, 0.0)).passed


def test_not_a_number_fails_whatever_the_limits(probe, scores):
    values = scores.copy()
    values[0, 0] = np.nan
    quality = judged(probe, scores, values, LENIENT)
    assert not quality.passed
    assert [fault.kind for fault in quality.faults] == ["not finite"]


@pytest.mark.parametrize(
    ("spread", "of_the_first", "passed"),
    [(0.1, False, True), (3.0, False, False), (0.1, True, False)],
)
def test_outputs_may_be_constant_where_the_reference_hardly_varies(
    probe, scores, spread, of_the_first, passed
):
    """Saturated probabilities of random images are one integer; those of the data never are."""
    other = Probe("random", probe.inputs, 8)
    hardly = 5 + spread * np.random.default_rng(0).normal(size=scores.shape).astype("float32")
    constant = np.full_like(scores, 5)
    found = {"test": constant if of_the_first else scores, "random": constant}
    expected = {"test": hardly if of_the_first else scores, "random": hardly}
    execution = Execution(
        {"fast": {name: {"scores": values} for name, values in found.items()}},
        {name: {"scores": values} for name, values in expected.items()},
        [probe, other],
        {"fast": None},
    )
    assert judge_quality(execution, QualityRule(15, 0, 1), {"scores": Task(3)}).passed is passed


def test_a_missing_or_misshapen_output_fails(probe, scores):
    for values, kind in ((None, "missing"), (scores[:, :2], "wrong shape")):
        quality = judged(probe, scores, values, LENIENT)
        assert not quality.passed
        assert [fault.kind for fault in quality.faults] == [kind]


def test_a_slow_backend_is_judged_on_fewer_samples(probe, scores):
    values = scores.copy()
    values[-4:] = values[-4:, ::-1]
    fast, slow = judged(probe, scores, values, LENIENT, slow=16).outputs
    assert (fast.samples, slow.samples) == (SAMPLES, 16)
    assert (fast.top1_agreement, slow.top1_agreement) == (0.9, 1.0)


def test_an_output_that_is_better_than_its_reference_has_lost_nothing(probe, scores):
    worse = scores.copy()
    worse[:4] = worse[:4, ::-1]
    (output,) = judged(probe, worse, scores, QualityRule(0.0, 0.0, 0.0)).outputs
    assert output.drop == pytest.approx(-0.1)
    assert output.passed


def values_judged(expected, values, rule=LENIENT):
    probe = Probe("test", {"x": np.zeros((len(expected), 2))}, 8)
    outputs = {"fast": {"test": {"y": values}}}
    execution = Execution(outputs, {"test": {"y": expected}}, [probe], {"fast": None})
    (output,) = judge_quality(execution, rule, {}).outputs
    return output


def test_few_samples_do_not_miss_a_limit_by_chance(probe, scores):
    """One sample of 40 that changes its class may be one of a hundred."""
    values = scores.copy()
    values[:1] = values[:1, ::-1]
    assert judged(probe, scores, values, QualityRule(0.0, 0.99, 0.01)).passed
    values[:8] = scores[:8, ::-1]
    assert not judged(probe, scores, values, QualityRule(0.0, 0.99, 1.0)).passed


def test_values_are_judged_about_their_mean():
    """1013 hPa and a little, in steps of 4: the ratio to all of it would be 59 dB."""
    expected = np.random.default_rng(0).normal(1013, 5, (500, 1))
    output = values_judged(expected, np.round(expected / 4) * 4, QualityRule(20.0, 0.0, 1.0))
    assert 10 < output.snr_db < 14
    assert not output.passed


def test_channels_that_tell_nothing_any_more_are_noticed_beside_large_ones():
    rng = np.random.default_rng(0)
    boxes, scores = rng.uniform(0, 640, (300, 4)), rng.uniform(0, 1, (300, 3))
    expected = np.concatenate([boxes, scores], axis=1)
    kept = values_judged(expected, expected + rng.normal(0, 0.05, expected.shape))
    assert (kept.lost_channels, kept.passed) == (0.0, True)
    lost = values_judged(expected, np.concatenate([boxes, np.zeros_like(scores)], axis=1))
    assert lost.snr_db > 40
    assert lost.lost_channels == pytest.approx(3 / 7)
    assert not lost.passed


def test_channels_that_all_but_stand_still_do_not_count():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(300, 5)) * [1, 1, 1, 1e-5, 0]
    assert values_judged(expected, np.round(expected, 2)).passed


def test_what_is_not_a_number_in_the_reference_as_well_is_left_out():
    expected = np.random.default_rng(0).normal(size=(50, 3))
    expected[0] = np.nan
    output = values_judged(expected, expected + 0.01)
    assert output.passed
    assert output.snr_db == pytest.approx(40, abs=1)
