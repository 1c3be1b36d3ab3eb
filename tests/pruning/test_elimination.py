import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.pruning.elimination import AT_ONCE, Taken, eliminate, ridged


def taken_by(rng, size, group, *, samples=200, repeated=1):
    """A consumer of random channels; those of the group stand at random places."""
    mixing = rng.normal(size=(size, size))
    values = rng.normal(size=(samples, size)) @ mixing
    kernel = rng.normal(size=(3, size, 4))
    importance = np.einsum("pcn,pdn->cd", kernel, kernel)
    places = rng.permutation(size)[: group * repeated].reshape(group, repeated)
    scatter = ridged(np.cov(values.T, bias=True))
    return Taken(values.mean(axis=0), scatter, importance), tuple(places)


def best_error(taker, removed):
    """The least squared error, weighed, of all channels given by those that stay."""
    taken, places = taker
    columns = [int(c) for channel in removed for c in places[channel]]
    stay = np.setdiff1d(np.arange(len(taken.scatter)), columns)
    a = taken.scatter
    given_by = a[:, stay] @ np.linalg.inv(a[np.ix_(stay, stay)])
    residual = a - given_by @ a[stay]
    return float(np.vdot(taken.importance, residual))


@given(st.integers(0, 2**16), st.integers(2, 9), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_errors_are_those_of_the_best_linear_reconstruction(seed, group, takers, repeated):
    rng = np.random.default_rng(seed)
    all_taken = [
        taken_by(rng, group * repeated + int(rng.integers(0, 4)), group, repeated=repeated)
        for _ in range(takers)
    ]
    result = eliminate(group, all_taken)
    assert sorted(result.order) == list(range(group))
    # With all channels removed, others of a concatenation may still give something.
    for count in range(group):
        expected = sum(best_error(taken, result.order[:count]) for taken in all_taken)
        assert np.isclose(result.errors[count], expected, rtol=1e-6, atol=1e-8 * result.errors[-1])


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_the_first_channel_to_go_is_the_one_that_costs_least(seed):
    taken = taken_by(np.random.default_rng(seed), 8, 6)
    result = eliminate(6, [taken])
    costs = [best_error(taken, [channel]) for channel in range(6)]
    assert np.isclose(result.errors[1], min(costs))


def test_units_that_never_fire_and_copies_of_others_cost_nothing():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 8))
    values[:, 2] = 0
    values[:, 5] = 3 * values[:, 1] + 1
    kernel = rng.normal(size=(1, 8, 4))
    scatter = ridged(np.cov(values.T, bias=True))
    taken = Taken(values.mean(axis=0), scatter, np.einsum("pcn,pdn->cd", kernel, kernel))
    result = eliminate(8, [(taken, np.arange(8)[:, None])])
    assert set(result.order[:2]) in ({1, 2}, {2, 5})
    assert result.errors[2] < 1e-3 * result.errors[-1] < result.errors[3]
    stay = np.sort(result.order[2:])
    refit = taken.refit(stay)
    np.testing.assert_allclose(values[:, stay] @ refit.matrix.T + refit.constant, values, atol=2e-2)


@given(st.integers(0, 2**16), st.integers(65, 200))
@settings(max_examples=5, deadline=None)
def test_channels_that_go_together_cost_what_they_do_together(seed, group):
    taken = taken_by(np.random.default_rng(seed), group, group, samples=400)
    result = eliminate(group, [taken])
    assert np.all(np.diff(result.errors) >= 0)
    together = group // AT_ONCE
    total = best_error(taken, result.order[:together])
    assert np.isclose(result.errors[together], total, rtol=1e-5)
