"""What passes as the same prediction, and what is a fault in any case."""

import math
from typing import Any

import numpy as np
import pytest

from exporter.data import Task
from exporter.data.metrics import snr_db
from exporter.verification.parity import Execution, Parity, compare
from exporter.verification.probes import Probe
from exporter.verification.tolerance import Tolerance, derive_tolerances, given_tolerances

ROWS = 6

REFERENCE = {
    "scores": np.linspace(-3, 4, ROWS * 4).reshape(ROWS, 4).astype("float32"),
    "other": np.linspace(5, 9, ROWS * 4).reshape(ROWS, 4).astype("float32"),
    "amount": np.linspace(1, 2, ROWS).reshape(ROWS, 1).astype("float32"),
}


def judge(
    outputs: dict[str, Any],
    reference: dict[str, Any] = REFERENCE,
    *,
    atol: float | None = 1e-3,
    rtol: float | None = None,
) -> Parity:
    """Compares on one probe in one backend, under a given tolerance."""
    probe = Probe("test", {"x": np.zeros((ROWS, 2), "float32")}, 2)
    execution = Execution({"cpu": {"test": outputs}}, {"test": reference}, [probe], {"cpu": None})
    tolerances = given_tolerances({"test": reference}, atol, rtol)
    return compare(execution, tolerances, {"scores": Task(3)})


def with_scores(scores: Any) -> dict[str, Any]:
    return {**REFERENCE, "scores": scores}


def shifted(difference: float) -> dict[str, Any]:
    """The reference with one element of one output off."""
    scores = REFERENCE["scores"].astype("float64")
    scores[2, 1] += difference
    return with_scores(scores)


def test_passes_equal_outputs_with_nothing_left_to_allow() -> None:
    parity = judge(REFERENCE, atol=0.0)

    assert parity.passed
    assert {c.output for c in parity.comparisons} == set(REFERENCE)
    assert all(c.max_abs == c.max_rel == c.rmse == 0 for c in parity.comparisons)
    assert all(math.isinf(c.snr_db) for c in parity.comparisons)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("part", "passes"), [(0.999, True), (1.001, False)])
def test_tolerance_is_a_sharp_limit(part: float, passes: bool, sign: int) -> None:
    assert judge(shifted(sign * part * 1e-3), atol=1e-3).passed is passes


@pytest.mark.parametrize(("part", "passes"), [(0.999, True), (1.001, False)])
def test_relative_tolerance_is_a_part_of_the_reference(part: float, passes: bool) -> None:
    value = float(REFERENCE["scores"][2, 1])

    assert judge(shifted(part * 0.01 * value), atol=None, rtol=0.01).passed is passes


def test_absolute_and_relative_tolerance_add_up() -> None:
    value = float(REFERENCE["scores"][2, 1])
    allowed = 1e-3 + 0.01 * abs(value)

    assert judge(shifted(0.999 * allowed), atol=1e-3, rtol=0.01).passed
    assert not judge(shifted(1.001 * allowed), atol=1e-3, rtol=0.01).passed


def test_fails_if_one_output_of_several_is_beyond_the_tolerance() -> None:
    parity = judge(shifted(0.1))

    assert not parity.passed
    assert [c.output for c in parity.comparisons if not c.passed] == ["scores"]


def test_fails_if_nothing_was_compared() -> None:
    assert not Parity((), ()).passed


_SPOILT = {
    "one NaN": (np.where(np.arange(ROWS * 4).reshape(ROWS, 4) == 7, np.nan, 1.0), "not finite"),
    "all NaN": (np.full((ROWS, 4), np.nan), "not finite"),
    "one infinity": (
        np.where(np.arange(ROWS * 4).reshape(ROWS, 4) == 7, np.inf, 1.0),
        "not finite",
    ),
    "all zero": (np.zeros((ROWS, 4)), "all zero"),
    "same for all samples": (np.tile(REFERENCE["scores"][:1], (ROWS, 1)), "constant"),
    "one value": (np.full((ROWS, 4), 0.25), "constant"),
    "too few rows": (REFERENCE["scores"][:-1], "wrong shape"),
    "too many rows": (np.concatenate([REFERENCE["scores"]] * 2), "wrong shape"),
    "an axis too many": (REFERENCE["scores"][:, None], "wrong shape"),
    "transposed": (REFERENCE["scores"].T, "wrong shape"),
    "no samples": (REFERENCE["scores"][:0], "wrong shape"),
}


@pytest.mark.parametrize("case", _SPOILT)
def test_names_what_is_wrong_with_an_output_however_much_is_allowed(case: str) -> None:
    values, kind = _SPOILT[case]
    parity = judge(with_scores(values.astype("float32")), atol=1e6)

    assert not parity.passed
    (fault,) = parity.faults
    assert (fault.output, fault.kind, fault.backend, fault.probe) == ("scores", kind, "cpu", "test")
    assert not fault.in_reference


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_value_that_is_not_finite_is_within_no_tolerance(number: float) -> None:
    parity = judge(shifted(number), atol=1e6)

    assert [c.output for c in parity.comparisons if not c.passed] == ["scores"]


def test_missing_output_fails_and_the_others_are_still_compared() -> None:
    parity = judge({name: REFERENCE[name] for name in ("other", "amount")})

    assert not parity.passed
    assert [(fault.output, fault.kind) for fault in parity.faults] == [("scores", "missing")]
    assert {c.output for c in parity.comparisons} == {"other", "amount"}


def test_swapped_outputs_of_one_shape_fail_by_their_values() -> None:
    parity = judge(
        {**REFERENCE, "scores": REFERENCE["other"], "other": REFERENCE["scores"]}, atol=1.0
    )

    assert {c.output for c in parity.comparisons if not c.passed} == {"scores", "other"}


def test_swapped_outputs_of_two_shapes_fail_by_their_shapes() -> None:
    parity = judge({**REFERENCE, "scores": REFERENCE["amount"], "amount": REFERENCE["scores"]})

    assert {(f.output, f.kind) for f in parity.faults} == {
        ("scores", "wrong shape"),
        ("amount", "wrong shape"),
    }


@pytest.mark.parametrize(
    "values", [np.zeros((ROWS, 4)), np.full((ROWS, 4), 2.0), np.full((ROWS, 4), np.nan)]
)
def test_what_the_reference_does_as_well_is_noted_and_no_fault_of_the_artifact(values: Any) -> None:
    values = values.astype("float32")
    parity = judge({"scores": values}, {"scores": values})

    assert parity.passed
    assert [fault.in_reference for fault in parity.faults] == [True]


def test_not_a_number_must_be_where_the_reference_has_it() -> None:
    expected = REFERENCE["scores"].copy()
    expected[0] = np.nan
    assert judge({"scores": expected}, {"scores": expected}).passed
    for values in (REFERENCE["scores"], expected[::-1], np.full_like(expected, np.nan)):
        assert not judge({"scores": values}, {"scores": expected}, atol=1e6).passed


def test_fault_of_another_kind_is_not_excused_by_the_reference() -> None:
    parity = judge(
        {"scores": np.zeros((ROWS, 4), "float32")},
        {"scores": np.full((ROWS, 4), 1e-6, "float32")},
    )

    assert [(fault.kind, fault.in_reference) for fault in parity.faults] == [("all zero", False)]


def test_integer_outputs_may_be_constant() -> None:
    values = np.zeros((ROWS, 3), "int64")

    assert judge({"ids": values}, {"ids": values}, atol=0.0).passed
    assert not judge({"ids": values + 1}, {"ids": values}, atol=0.0).passed


def test_figures_are_those_computed_by_hand() -> None:
    expected = np.array([[3.0, 4.0], [0.0, -12.0]], "float32")
    actual = np.array([[3.5, 4.0], [0.25, -12.0]], "float32")
    probe = Probe("test", {"x": np.zeros((2, 1), "float32")}, 2)
    reference = {"test": {"scores": expected}}
    outputs = {"cpu": {"test": {"scores": actual}}}
    execution = Execution(outputs, reference, [probe], {"cpu": None})
    parity = compare(execution, given_tolerances(reference, 0.6, 0.1), {"scores": Task(3)})

    (comparison,) = parity.comparisons
    # The reference has the root mean square sqrt((9 + 16 + 0 + 144) / 4) = 6.5.
    assert comparison.max_abs == 0.5
    assert comparison.max_rel == pytest.approx(0.5 / 6.5)
    assert comparison.rmse == pytest.approx(math.sqrt((0.25 + 0.0625) / 4))
    assert comparison.snr_db == pytest.approx(10 * math.log10(169 / 0.3125))
    assert comparison.top1_agreement == 1.0
    assert comparison.samples == 2
    assert comparison.tolerance == Tolerance(0.6, 0.1, derived=False, rounding_error=None)
    assert comparison.strain == pytest.approx(0.5 / 0.6)
    assert comparison.passed


def test_agreement_counts_samples_of_the_same_class_where_there_are_classes() -> None:
    scores = REFERENCE["scores"].copy()
    scores[:2] = scores[:2, ::-1]
    by_output = {c.output: c for c in judge(with_scores(scores)).comparisons}

    assert by_output["scores"].top1_agreement == pytest.approx((ROWS - 2) / ROWS)
    assert by_output["other"].top1_agreement is None


def test_failed_comparison_is_strained_without_limit() -> None:
    (failed,) = (c for c in judge(shifted(0.1)).comparisons if not c.passed)

    assert math.isinf(failed.strain)


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _derived_parity(reference: Any, exact: Any, actual: Any) -> Parity:
    probe = Probe("test", {"x": np.zeros((len(reference), 1), "float32")}, len(reference))
    references = {"test": {"probabilities": reference}}
    tolerances = derive_tolerances(references, {"test": {"probabilities": exact}})
    outputs = {"cpu": {"test": {"probabilities": actual}}}
    execution = Execution(outputs, references, [probe], {"cpu": None})
    return compare(execution, tolerances, {"probabilities": Task(5)})


def test_logarithms_catch_an_error_of_logits_that_the_softmax_hides() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5))
    logits[:, 0] += 20  # Saturated: the other classes have next to no probability.
    exact = _softmax(logits)
    wrong = logits.copy()
    wrong[:, 3] += 0.5
    reference, actual = exact.astype("float32"), _softmax(wrong).astype("float32")

    parity = _derived_parity(reference, exact, actual)

    verdicts = {comparison.view: comparison.passed for comparison in parity.comparisons}
    assert verdicts == {"value": True, "log_probability": False}
    (log,) = (c for c in parity.comparisons if c.view == "log_probability")
    assert log.max_abs == pytest.approx(0.5, rel=1e-3)
    assert not parity.passed


def test_logarithms_of_equal_distributions_agree_even_where_they_vanish() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5))
    logits[:, 0] += 200
    exact = _softmax(logits)
    reference = exact.astype("float32")

    assert (reference == 0).any()
    assert _derived_parity(reference, exact, reference).passed


def test_backends_are_compared_on_the_samples_that_they_saw() -> None:
    reference = {"scores": REFERENCE["scores"]}
    probe = Probe("test", {"x": np.zeros((ROWS, 1), "float32")}, 2)
    outputs = {"fast": {"test": reference}, "slow": {"test": {"scores": reference["scores"][:4]}}}
    execution = Execution(outputs, {"test": reference}, [probe], {"fast": None, "slow": 5})
    parity = compare(execution, given_tolerances({"test": reference}, 0.0, None), {})

    assert parity.passed
    assert {c.backend: c.samples for c in parity.comparisons} == {"fast": ROWS, "slow": 4}


def test_signal_to_noise_of_a_tenth_is_twenty_decibels() -> None:
    reference = np.ones((4, 4))

    assert snr_db(1.1 * reference, reference) == pytest.approx(20)
