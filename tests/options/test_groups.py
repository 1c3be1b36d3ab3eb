"""Rules between the options of one group."""

import pytest

from exporter.errors import RecipeError
from exporter.options.groups import Goal
from exporter.recipe import Recipe


def test_a_budget_beside_rank_auto_says_how():
    goal = Goal(rank="auto", max_drop=0.01, target="arm64")
    assert goal.kind == "max_drop"
    assert goal.rank is None
    assert goal == Goal(max_drop=0.01, target="arm64")
    assert Goal(rank="auto").kind == "rank"


def test_a_target_is_no_goal_of_its_own():
    assert Goal(target="macs").rank == 20
    assert Goal(target="here", max_size="1MB").kind == "max_size"


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"rank": "auto", "target": "macs"}, "needs a limit.*max_drop"),
        ({"rank": 20, "max_drop": 0.01}, "Give one of.*max_drop"),
        ({"max_instructions": 1000}, "counted on target arm64 or arm64-old"),
        ({"max_instructions": 1000, "target": "here"}, "Received: target 'here'"),
        ({"max_latency": 1e-3, "target": "arm64"}, "measured on target 'here'"),
        ({"target": "arm"}, "target.*arm64"),
    ],
)
def test_what_does_not_fit_is_refused(choices, told):
    with pytest.raises(RecipeError, match=told):
        Goal(**choices)


def test_instructions_may_be_text():
    assert Goal(max_instructions="1.5M", target="arm64-old").max_instructions == 1_500_000


def test_a_target_measures_one_of_the_formats():
    with pytest.raises(RecipeError, match=r"'arm64' measures tflite \(none, .*int8.*onnx"):
        Recipe(target="arm64", formats=("onnx",))
    assert Recipe(target="arm64", formats=("onnx", "tflite")).goal.target == "arm64"
    with pytest.raises(RecipeError, match=r"measures tflite \(none, int8\), c \(none, int8\)"):
        Recipe(target="micro", quantize=("dynamic",))
