import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import DataError, RecipeError
from exporter.quantization.ranges import BINS, METHODS, PERCENTILE, Observer, relevant

few = settings(max_examples=20)  # A histogram is searched for each of them.
methods = pytest.mark.parametrize("method", METHODS)
VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def observed(*batches):
    observer = Observer()
    for batch in batches:
        observer.observe(batch)
    return observer


def rms_error(values, ends, bits=8):
    """Of asymmetric uniform quantization, as the runtimes do it."""
    low, high = ends
    if low == high:
        return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    step = (high - low) / (2**bits - 1)
    zero_point = np.rint(-low / step)
    integers = np.clip(np.rint(values / step) + zero_point, 0, 2**bits - 1)
    return float(np.sqrt(np.mean(np.square(step * (integers - zero_point) - values))))


def heavy_tailed(seed=0, count=20_000):
    return np.random.default_rng(seed).standard_t(3, count)


@methods
@few
@given(values=VALUES)
def test_a_range_holds_zero_and_nothing_beyond_the_values(method, values):
    low, high = observed(values).range(method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)


@given(values=VALUES)
def test_minmax_holds_all_values(values):
    assert observed(values).range("minmax") == (min(values.min(), 0), max(values.max(), 0))


@methods
@few
@given(values=VALUES, seed=st.integers(0, 100))
def test_the_order_of_values_and_the_batches_make_no_difference(method, values, seed):
    shuffled = np.random.default_rng(seed).permutation(values)
    batches = np.array_split(shuffled, 1 + seed % 7)
    assert observed(values).range(method) == observed(*batches).range(method)


@pytest.mark.parametrize("bits", [4, 8])
@few
@given(values=VALUES)
def test_mse_is_no_worse_than_minmax(values, bits):
    observer = observed(values)
    # The distance to the nearest level changes by no more than the value is moved by: by a bin.
    width = 2 * max(abs(end) for end in observer.range("minmax")) / (BINS / 2)
    minmax, mse = (
        rms_error(values.astype(np.float64), observer.range(method, bits), bits)
        for method in ("minmax", "mse")
    )
    assert mse <= minmax + 2 * width


@pytest.mark.parametrize(
    "values",
    [
        heavy_tailed(),
        np.maximum(heavy_tailed(), 0),
        -np.abs(heavy_tailed()),
        np.concatenate([np.random.default_rng(0).normal(size=9999), [40]]),
    ],
    ids=["two-sided", "relu", "negative", "outlier"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_the_best_of_all_ranges_tried(values, bits):
    observer = observed(values)
    low, high = observer.range("minmax")
    parts = np.linspace(0.02, 1, 50)
    best = min(
        rms_error(values, (low * a, high * b), bits)
        for a in (parts if low else [0])
        for b in (parts if high else [0])
    )
    assert rms_error(values, observer.range("mse", bits), bits) <= 1.02 * best


def test_mse_clips_less_with_more_bits():
    observer = observed(heavy_tailed())
    widths = [high - low for low, high in (observer.range("mse", bits) for bits in (4, 8, 16))]
    full = np.subtract(*observer.range("minmax")[::-1])
    assert widths[0] < widths[1] < widths[2] == full


def test_percentile_clips_as_many_on_both_sides():
    values = np.random.default_rng(0).permutation(np.linspace(-2, 1, 1_000_001))
    low, high = observed(values).range("percentile")
    for clipped in (np.mean(values < low), np.mean(values > high)):
        assert clipped == pytest.approx((1 - PERCENTILE / 100) / 2, rel=0.05)


def test_entropy_clips_outliers():
    values = np.append(np.random.default_rng(0).normal(size=50_000), [100.0, -60.0])
    low, high = observed(values).range("entropy")
    assert -30 < low < -3
    assert 3 < high < 30


@pytest.mark.parametrize("value", [0.0, 0.137, -0.6])
def test_a_value_that_many_samples_share_does_not_decide_on_the_entropy(value):
    values = np.random.default_rng(0).normal(size=50_000)
    low, high = observed(values, np.full(200_000, value)).range("entropy")
    assert (low, high) == pytest.approx(observed(values).range("entropy"), abs=0.5)


@methods
@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_values_keep_the_end_at_zero(method, sign):
    values = sign * np.maximum(heavy_tailed(), 0)
    ends = observed(values).range(method)
    assert ends[0 if sign > 0 else 1] == 0
    assert ends[0] < ends[1]


@methods
@pytest.mark.parametrize("value", [3.7, -2.5, 1e-300, -1e300, 5e-324])
def test_constant_values(method, value):
    low, high = observed(np.full(10, value)).range(method)
    assert low <= 0 <= high
    assert low < high
    if method == "minmax":
        assert value in {low, high}


@methods
def test_zeros_alone(method):
    assert observed(np.zeros((3, 4))).range(method) == (0.0, 0.0)


@methods
def test_sizes_far_apart(method):
    low, high = observed(np.array([1e-300]), np.array([1e300, -1e290])).range(method)
    assert -1e290 <= low <= 0 < high <= 1e300


def test_integers_are_numbers():
    assert observed(np.array([[3, -4]], np.int8)).range("minmax") == (-4, 3)


@methods
def test_nothing_observed(method):
    observer = observed(np.zeros((0, 3)))
    with pytest.raises(DataError, match="no values"):
        observer.range(method)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(wrong):
    with pytest.raises(DataError, match="1 of 2 values"):
        observed(np.array([1.0, wrong]))


def test_an_unknown_method():
    with pytest.raises(RecipeError, match="minmax, percentile, mse, entropy"):
        observed(np.ones(3)).range("median")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@given(hnp.arrays(np.float64, (4, 6), elements=st.floats(-300, 300)), st.sampled_from([8, 16]))
def test_relevant_logits_have_the_same_probabilities(logits, bits):
    kept = relevant(logits, "categorical", bits)
    assert abs(softmax(kept) - softmax(logits)).max() <= 6 * 2.0 ** -(bits + 2)
    assert np.all(kept.max(axis=-1) - kept.min(axis=-1) <= (bits + 2) * np.log(2) + 1e-9)
    # What is masked by a number far off does not pull others down to it.
    masked = np.where(np.arange(6) < 2, logits, -1e38)
    kept = relevant(masked, "categorical", bits)
    assert abs(softmax(kept) - softmax(masked)).max() <= 6 * 2.0 ** -(bits + 2)
    assert kept.min() >= min(logits.min(), 0) - (bits + 2) * np.log(2)
    sigmoid = [1 / (1 + np.exp(-x)) for x in (logits, relevant(logits, "bernoulli", bits))]
    assert abs(sigmoid[0] - sigmoid[1]).max() <= 2.0 ** -(bits + 2)


def test_a_softmax_of_one_needs_no_range():
    np.testing.assert_array_equal(relevant(np.array([[3.0], [-7.0]]), "categorical"), 0)
