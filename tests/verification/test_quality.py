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
    return Probe("test", {"x": np.zeros((SAMPLES, 2))}, 8, must_vary=True, labels=labels)


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
        (QualityRule(6.9, 0.91, 0.11), False),
        (QualityRule(6.9, 0.9, 0.09), False),
    ],
)
def test_every_limit_counts(probe, scores, rule, passed):
    values = scores.copy()
    values[:4] = values[:4, ::-1]
    assert judged(probe, scores, values, rule).passed is passed


def test_equal_predictions_pass_any_limit(probe, scores):
    assert judged(probe, scores, scores, QualityRule(200.0, 1.0, 0.0)).passed


def test_not_a_number_fails_whatever_the_limits(probe, scores):
    values = scores.copy()
    values[0, 0] = np.nan
    quality = judged(probe, scores, values, LENIENT)
    assert not quality.passed
    assert [fault.kind for fault in quality.faults] == ["not finite"]


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
