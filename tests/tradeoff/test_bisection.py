import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.tradeoff.bisection import LEAST, Bisection
from exporter.tradeoff.front import FIGURES, UNCOMPRESSED, Point, choose

BITS = {"float32": 32, "int8": 8, "int4": 4}
WHOLE = 100_000


def points_at(part, thresholds, floors):
    """What comes of a trial: each variant loses a step below its own least part."""
    found = []
    for variant, bits in BITS.items():
        for goal, at in (("budget", part), (UNCOMPRESSED, 1.0)):
            lost = floors[variant] + (0.2 if at < thresholds[variant] else 0.0)
            size = int(WHOLE * at * bits / 8)
            found.append(
                Point(goal, "tflite", variant, "t", None, size, None, lost, lost, None, size)
            )
    return found


def closed_in(thresholds, floors, trials=8):
    closing, found, asked = Bisection(FIGURES["size"], 0.01), [], []
    while len(asked) < trials and (part := closing.ask()) is not None:
        asked.append(part)
        points = points_at(part, thresholds, floors)
        closing.tell(part, points)
        found += points
    return choose(found, max_drop=0.01, best="size"), asked


@given(
    st.fixed_dictionaries({variant: st.floats(0.004, 0.9) for variant in BITS}),
    st.fixed_dictionaries({variant: st.sampled_from([0.0, 0.5]) for variant in BITS}),
)
@settings(deadline=None)
def test_the_choice_is_close_to_the_smallest_that_keeps_the_loss(thresholds, floors):
    best, asked = closed_in(thresholds, floors, trials=20)
    usable = [v for v in BITS if floors[v] <= 0.01]
    assert len(asked) == len(set(asked))
    assert all(LEAST <= part <= 1 for part in asked)
    if not usable:
        assert best is None
        return
    optimum = min(WHOLE * thresholds[v] * BITS[v] / 8 for v in usable)
    assert best.size <= 1.15 * optimum


def test_the_best_part_is_one_that_a_budget_can_have():
    closing = Bisection(FIGURES["size"], 0.01)
    first = closing.ask()
    closing.tell(first, points_at(first, dict.fromkeys(BITS, 0.9), dict.fromkeys(BITS, 0.0)))
    assert closing.best_part == first, "only the uncompressed network is within the loss"
    part = closing.ask()
    closing.tell(part, points_at(part, dict.fromkeys(BITS, 0.3), dict.fromkeys(BITS, 0.0)))
    assert closing.best_part == part


def test_trials_end_where_nothing_is_to_be_gained():
    best, asked = closed_in(dict.fromkeys(BITS, 0.2), dict.fromkeys(BITS, 0.0), trials=30)
    assert best.variant == "int4"
    assert len(asked) < 12


def test_a_trial_that_runs_is_not_asked_for_again():
    closing = Bisection(FIGURES["size"], 0.01)
    first = closing.ask()
    closing.tell(first, points_at(first, dict.fromkeys(BITS, 0.01), dict.fromkeys(BITS, 0.0)))
    assert len({closing.ask(), closing.ask(), closing.ask()}) == 3


@pytest.mark.parametrize("failures", [1, 4])
def test_failed_trials_do_not_end_the_search(failures):
    closing = Bisection(FIGURES["size"], 0.01)
    for _ in range(failures):
        closing.tell(closing.ask(), [])
    part = closing.ask()
    assert part is not None
    assert 0.2 < part < 1
