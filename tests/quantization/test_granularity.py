import pytest

from exporter.quantization.granularity import WORTHWHILE_DB, GranularityTrial, choose, to_try


def test_tries_what_was_asked_for():
    assert to_try("auto") == ("tensor", "channel")
    assert to_try("tensor") == ("tensor",)
    assert to_try("channel") == ("channel",)


@pytest.mark.parametrize(
    ("gain", "chosen"),
    [(0.0, "tensor"), (WORTHWHILE_DB - 0.1, "tensor"), (WORTHWHILE_DB, "channel")],
)
def test_more_bytes_must_be_worth_it(gain, chosen):
    trials = [
        GranularityTrial("tensor", 1000, 20.0),
        GranularityTrial("channel", 1500, 20.0 + gain),
    ]
    assert choose(trials).granularity == chosen


def test_takes_the_smallest_if_nothing_was_measured():
    assert (
        choose(
            [GranularityTrial("tensor", 1000, None), GranularityTrial("channel", 900, None)]
        ).size
        == 900
    )


def test_takes_what_runs():
    trials = [
        GranularityTrial("tensor", 1000, float("-inf")),
        GranularityTrial("channel", 1500, 12.0),
    ]
    assert choose(trials).granularity == "channel"


def test_takes_the_smallest_of_equals_without_any_error():
    trials = [
        GranularityTrial("channel", 1500, float("inf")),
        GranularityTrial("tensor", 1000, float("inf")),
    ]
    assert choose(trials).granularity == "tensor"
