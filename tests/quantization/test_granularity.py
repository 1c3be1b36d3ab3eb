import pytest

from exporter.quantization.granularity import WORTHWHILE_DB, Trial, choose, to_try


def test_tries_what_was_asked_for():
    assert to_try("auto") == ("tensor", "channel")
    assert to_try("tensor") == ("tensor",)
    assert to_try("channel") == ("channel",)


@pytest.mark.parametrize(
    ("gain", "chosen"),
    [(0.0, "tensor"), (WORTHWHILE_DB - 0.1, "tensor"), (WORTHWHILE_DB, "channel")],
)
def test_more_bytes_must_be_worth_it(gain, chosen):
    trials = [Trial("tensor", 1000, 20.0), Trial("channel", 1500, 20.0 + gain)]
    assert choose(trials).granularity == chosen


def test_takes_the_smallest_if_nothing_was_measured():
    assert choose([Trial("tensor", 1000, None), Trial("channel", 900, None)]).size == 900


def test_takes_what_runs():
    trials = [Trial("tensor", 1000, float("-inf")), Trial("channel", 1500, 12.0)]
    assert choose(trials).granularity == "channel"


def test_takes_the_smallest_of_equals_without_any_error():
    trials = [Trial("channel", 1500, float("inf")), Trial("tensor", 1000, float("inf"))]
    assert choose(trials).granularity == "tensor"
