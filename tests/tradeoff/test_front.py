"""The choice among many artifacts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.tradeoff.front import Point, choose, knee, pareto_front


def point(size, loss, latency=None):
    return Point("4", "tflite", "int8", "t", "t/model.tflite", size, latency, loss, 1.0, None, 1000)


POINTS = st.lists(
    st.builds(
        point,
        st.integers(1, 50),
        st.floats(-0.1, 1),
        st.none() | st.floats(1e-6, 1e-3),
    ),
    max_size=12,
)


@given(POINTS)
def test_no_point_of_the_front_is_beaten_and_only_beaten_ones_are_left_out(points):
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for each in points:
        assert (each in front) != any(other.beats(each) for other in points)
    assert [p.size for p in front] == sorted(p.size for p in front)


@given(POINTS)
def test_the_knee_is_a_point_of_the_front_below_the_chord(points):
    front = pareto_front(points)
    found = knee(front)
    assert (found is None) == (not points)
    assert found is None or found in front


def test_the_knee_is_where_bytes_begin_to_buy_little():
    points = [point(10, 0.5), point(20, 0.02), point(40, 0.015), point(80, 0.01), point(160, 0.0)]
    assert knee(points) == points[1]
    assert knee(points[::4]) == points[4]
    assert knee([point(7, 0.3)]) == point(7, 0.3)


def test_latencies_within_the_noise_of_timing_do_not_decide():
    one, other = point(10, 0.1, 1.00e-3), point(10, 0.1, 1.04e-3)
    assert not one.beats(other)
    assert not other.beats(one)
    assert one.beats(replace(other, latency=1.2e-3))
    assert one.beats(point(11, 0.1, None))
    assert not replace(one, latency=2e-3).beats(point(11, 0.1, 1e-3))


@given(POINTS, st.integers(1, 50), st.floats(-0.1, 1))
def test_a_choice_keeps_its_limits_and_nothing_within_them_is_better(points, size, drop):
    small = choose(points, max_drop=drop)
    within = [p for p in points if p.loss <= drop]
    assert (small is None) == (not within)
    assert small is None or small.size == min(p.size for p in within)
    good = choose(points, max_size=size)
    within = [p for p in points if p.size <= size]
    assert (good is None) == (not within)
    assert good is None or good.loss == min(p.loss for p in within)
    both = choose(points, max_size=size, max_drop=drop)
    assert both is None or (both.size <= size and both.loss <= drop)


@pytest.mark.parametrize("limit", [1e-5, 1e-2])
def test_what_was_not_timed_keeps_no_limit_of_latency(limit):
    assert choose([point(10, 0.1)], max_latency=limit) is None
    timed = point(10, 0.1, 1e-3)
    assert choose([timed], max_latency=limit) == (timed if limit > 1e-3 else None)
