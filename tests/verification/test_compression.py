"""What compression cost, and when the compressed model is no model any more."""

import math
from typing import Any

import numpy as np
import pytest

from exporter.data import Task
from exporter.data.metrics import Metric
from exporter.verification.compression import (
    CompressionVerdict,
    judge_compression,
    output_tasks,
)

COUNT = 60
LABELS = np.arange(COUNT) % 3
TARGETS = np.random.default_rng(0).normal(size=(COUNT, 2))


def distributions(classes: Any, confidence: float = 0.8) -> Any:
    """Softmax outputs that predict the given classes, each sample a little differently."""
    rows = np.eye(3)[classes] * confidence + (1 - confidence) / 3
    rows *= 1 + 1e-3 * np.random.default_rng(0).uniform(size=rows.shape)
    return (rows / rows.sum(axis=1, keepdims=True)).astype("float32")


GOOD = distributions(LABELS)


def judge(baseline: Any, compressed: Any, labels: Any = None) -> CompressionVerdict:
    given = {} if labels is None else {"y": labels}
    task = {} if labels is None else {"y": Task(3 if labels is LABELS else None)}
    tasks = output_tasks({"y": baseline}, task)
    return judge_compression({"y": baseline}, {"y": compressed}, given, tasks)


def test_reports_both_metrics_and_the_best_constant_one() -> None:
    classes = LABELS.copy()
    classes[:6] = (classes[:6] + 1) % 3
    verdict = judge(GOOD, distributions(classes), LABELS)

    (output,) = verdict.outputs
    assert verdict.passed
    assert verdict.labelled
    assert output.baseline == Metric("accuracy", 1.0, COUNT)
    assert output.compressed == Metric("accuracy", 0.9, COUNT)
    assert output.trivial == Metric("accuracy", pytest.approx(1 / 3), COUNT)
    assert output.top1_agreement == pytest.approx(0.9)
    assert output.samples == COUNT
    assert not output.collapsed


def test_equal_predictions_pass_with_infinite_signal_to_noise() -> None:
    (output,) = judge(GOOD, GOOD).outputs

    assert math.isinf(output.snr_db)
    assert output.top1_agreement == 1
    assert not output.collapsed


def test_signal_to_noise_is_that_of_the_baseline() -> None:
    (output,) = judge(TARGETS, 0.9 * TARGETS).outputs

    assert output.snr_db == pytest.approx(20)


@pytest.mark.parametrize("labels", [None, LABELS], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(np.full((COUNT, 3), np.nan, "float32"), id="not a number"),
        pytest.param(np.where(np.arange(COUNT)[:, None] == 5, np.inf, GOOD), id="infinite once"),
        pytest.param(np.zeros((COUNT, 3), "float32"), id="zero"),
        pytest.param(np.tile(GOOD[:1], (COUNT, 1)), id="constant"),
    ],
)
def test_output_that_says_nothing_has_collapsed(broken: Any, labels: Any) -> None:
    verdict = judge(GOOD, broken, labels)

    assert not verdict.passed
    assert verdict.outputs[0].collapsed


@pytest.mark.parametrize("hits", [0.0, 1 / 3])
def test_classifier_no_better_than_the_commonest_class_has_collapsed(hits: float) -> None:
    wrong = (LABELS + 1) % 3
    right = round(hits * COUNT)
    wrong[:right] = LABELS[:right]

    assert not judge(GOOD, distributions(wrong), LABELS).passed
    # Without labels there is nothing to tell it by, other than how few samples agree.
    unlabelled = judge(GOOD, distributions(wrong))
    assert unlabelled.passed
    assert unlabelled.outputs[0].top1_agreement == pytest.approx(hits)


def test_classifier_that_is_barely_better_than_trivial_has_not_collapsed() -> None:
    classes = (LABELS + 1) % 3
    classes[: COUNT // 3 + 1] = LABELS[: COUNT // 3 + 1]

    assert judge(GOOD, distributions(classes), LABELS).passed


def test_regression_worse_than_the_mean_has_collapsed() -> None:
    noisy = TARGETS + np.random.default_rng(1).normal(0, 2, TARGETS.shape)

    assert judge(TARGETS, 0.9 * TARGETS, TARGETS).passed
    verdict = judge(TARGETS, noisy, TARGETS)
    assert not verdict.passed
    (output,) = verdict.outputs
    assert output.baseline == Metric("mse", 0.0, COUNT)
    assert output.trivial.value == pytest.approx(np.var(TARGETS, axis=0).mean())
    assert output.compressed.value > output.trivial.value
    assert output.top1_agreement is None


def test_compression_does_not_answer_for_a_baseline_that_is_no_better() -> None:
    useless = distributions((LABELS + 1) % 3)

    assert judge(useless, useless, LABELS).passed


def test_single_sample_need_not_vary() -> None:
    assert judge(GOOD[:1], GOOD[:1]).passed


def test_one_collapsed_output_of_two_fails() -> None:
    verdict = judge_compression(
        {"kind": GOOD, "amount": TARGETS},
        {"kind": GOOD, "amount": np.zeros_like(TARGETS)},
        {"kind": LABELS},
        {"kind": Task(3), "amount": Task()},
    )

    assert not verdict.passed
    assert {o.output: o.collapsed for o in verdict.outputs} == {"kind": False, "amount": True}
    assert {o.output: o.baseline is None for o in verdict.outputs} == {
        "kind": False,
        "amount": True,
    }


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (GOOD, None, 3),
        (10 * GOOD, None, None),
        (10 * GOOD, Task(3), 3),
        (GOOD, Task(), None),
        (TARGETS, None, None),
    ],
    ids=["distribution", "logits", "logits with classes", "values", "regression"],
)
def test_labels_or_else_values_tell_where_the_largest_element_is_a_class(
    values: Any, task: Any, classes: int | None
) -> None:
    assert output_tasks({"y": values}, {"y": task} if task else {})["y"].classes == classes


def test_what_the_baseline_does_as_well_is_no_collapse() -> None:
    partly = GOOD.copy()
    partly[3] = np.nan
    assert judge(partly, partly).passed
    constant = np.ones((COUNT, 2))
    assert judge(constant, constant).passed
    nothing = np.full((COUNT, 3), np.nan)
    assert not judge(nothing, nothing).passed


@pytest.mark.parametrize(
    ("wrong", "large"), [(0, False), (1, False), (15, True)], ids=["none", "by chance", "many"]
)
def test_a_large_loss_of_accuracy_is_noticed_beyond_chance(wrong: int, large: bool) -> None:
    classes = LABELS.copy()
    classes[:wrong] = (classes[:wrong] + 1) % 3
    (output,) = judge(GOOD, distributions(classes), LABELS).outputs

    assert output.loss == pytest.approx(wrong / COUNT)
    assert output.is_large is large


def test_without_labels_agreement_and_noise_tell_what_was_lost() -> None:
    (agreed,) = judge(GOOD, distributions((LABELS + 1) % 3)).outputs
    (noisy,) = judge(TARGETS, 0.8 * TARGETS).outputs

    assert (agreed.loss, agreed.is_large) == (1.0, True)
    assert noisy.loss == pytest.approx(0.2)
    assert noisy.is_large


def test_the_limit_of_the_user_fails_the_verdict() -> None:
    classes = LABELS.copy()
    classes[:6] = (classes[:6] + 1) % 3
    arguments = ({"y": GOOD}, {"y": distributions(classes)}, {"y": LABELS}, {"y": Task(3)})

    assert judge_compression(*arguments, 0.11).passed
    assert not judge_compression(*arguments, 0.09).passed
