import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.lowrank.candidates import Candidate
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.truncation import error_curve
from exporter.lowrank.ranks.automatic import (
    EnergyRank,
    FractionRank,
    StableRank,
    VbmfRank,
    vbmf_rank,
)

POLICIES = [FractionRank(0.3), EnergyRank(0.5), StableRank(), VbmfRank()]


def candidate(m, n, groups=1):
    layer = SimpleNamespace(count_params=lambda: groups * m * n)
    kernel = Kernel(
        m=m, n=n, layer=layer, variable=None, read=None, outputs=None, positions=1, groups=groups
    )
    return Candidate("layer", "layer", "Dense", None, None, kernel)


def curve_of(singular_values):
    """The error curve of a matrix with these singular values."""
    energies = np.square(np.asarray(singular_values, float))
    return np.append(np.cumsum(energies[::-1])[::-1], 0.0)


def chosen(policy, m, n, curve=None, groups=1):
    return policy.choose([candidate(m, n, groups)], {"layer": curve})["layer"]


def noisy(m, n, rank, noise, seed):
    """A matrix of that rank, whose elements have a variance of about the rank, and noise."""
    generator = np.random.default_rng(seed)
    signal = generator.standard_normal((m, rank)) @ generator.standard_normal((rank, n))
    return signal + noise * generator.standard_normal((m, n))


class TestFractionRank:
    @given(
        m=st.integers(1, 300),
        n=st.integers(1, 300),
        fraction=st.floats(0.01, 0.99),
    )
    def test_keeps_no_more_than_that_part_but_for_rank_1(self, m, n, fraction):
        rank = chosen(FractionRank(fraction), m, n).rank
        if rank is None:
            assert m + n >= m * n  # Rank 1 is no smaller.
        else:
            assert rank == 1 or rank * (m + n) <= fraction * m * n
            assert (rank + 1) * (m + n) > fraction * m * n * (1 - 1e-12)

    def test_says_what_it_keeps(self):
        assert chosen(FractionRank(0.25), 100, 100) == (12, "24.0 % of break-even 50.0")
        assert chosen(FractionRank(0.25), 10, 1) == (None, "rank 1 reaches break-even 0.9")

    def test_needs_no_curves(self):
        assert not FractionRank(0.5).needs_curves


class TestEnergyRank:
    @given(
        values=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30),
        energy=st.floats(0.01, 0.999),
    )
    def test_is_the_smallest_rank_that_keeps_enough(self, values, energy):
        curve = curve_of(sorted(values, reverse=True))
        full = len(values)
        rank = chosen(EnergyRank(energy), full, full**2, curve).rank
        smallest = next(r for r in range(full + 1) if curve[r] <= (1 - energy + 1e-12) * curve[0])
        # Break-even is within the full rank and the one before.
        assert rank == (smallest if smallest < full else None)

    def test_says_what_it_keeps(self):
        curve = curve_of([3, 2, 1, 1, 1] + [0] * 15)
        assert chosen(EnergyRank(0.8), 20, 20, curve) == (2, "keeps 81.2 % of the energy")
        # Exactly: 15 of 16.
        assert chosen(EnergyRank(0.9375), 20, 20, curve) == (4, "keeps 93.7 % of the energy")

    def test_what_is_discarded_is_never_rounded_away(self):
        curve = curve_of([100, 1, 1] + [0] * 17)
        assert chosen(EnergyRank(0.9995), 20, 20, curve).reason == "keeps 99.9 % of the energy"
        curve = curve_of([100, 1] + [0] * 18)
        assert chosen(EnergyRank(0.99999), 20, 20, curve).reason == "keeps 100.0 % of the energy"

    def test_past_break_even_a_kernel_stays_dense(self):
        choice = chosen(EnergyRank(0.9), 20, 20, curve_of(np.ones(20)))
        assert choice == (None, "rank 18 reaches break-even 10.0")


class TestStableRank:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
            ([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 3),
            ([2, 1, 0, 0, 0, 0, 0, 0, 0, 0], 2),
            ([1, 0.1, 0.1, 0.1, 0, 0, 0, 0, 0, 0], 2),
        ],
    )
    def test_is_rounded_up(self, values, expected):
        assert chosen(StableRank(), 10, 100, curve_of(values)).rank == expected

    @given(scale=st.floats(1e-6, 1e6), count=st.integers(1, 20))
    def test_rounding_of_floats_adds_no_rank(self, scale, count):
        values = [scale * math.sqrt(0.1)] * count + [0.0] * (40 - count)
        assert chosen(StableRank(), 40, 4000, curve_of(values)).rank == count

    def test_says_what_it_is(self):
        curve = curve_of([2, 1] + [0] * 8)
        assert chosen(StableRank(), 10, 10, curve).reason == "the stable rank is 1.2"


class TestVbmf:
    @pytest.mark.parametrize(
        ("m", "n", "rank", "noise"),
        [
            (100, 60, 5, 0.1),
            (60, 200, 10, 1.0),
            (150, 150, 12, 0.5),
            (120, 80, 20, 0.01),
            (200, 60, 1, 1.0),
            (10, 12, 2, 0.05),
            (40, 40, 3, 0.0),
        ],
    )
    def test_recovers_the_planted_rank(self, m, n, rank, noise):
        for seed in range(3):
            matrix = noisy(m, n, rank, noise, seed)
            choice = chosen(VbmfRank(), m, n, error_curve(matrix[np.newaxis]))
            reason = f"VBMF finds {rank} of {min(m, n)} directions above the noise"
            assert choice == (rank, reason)

    @pytest.mark.parametrize(("m", "n"), [(50, 50), (128, 128), (300, 60), (20, 200)])
    def test_finds_next_to_nothing_in_noise(self, m, n):
        for seed in range(5):
            curve = error_curve(noisy(m, n, 0, 1.0, seed)[np.newaxis])
            assert vbmf_rank(-np.diff(curve), (m, n)) <= 1
            assert chosen(VbmfRank(), m, n, curve).rank == 1

    def test_a_signal_below_the_noise_is_left_alone(self):
        """The largest singular value of noise alone is about sqrt(m) + sqrt(n)."""
        generator = np.random.default_rng(0)
        u, v = (generator.standard_normal((200, 1)) / math.sqrt(200) for _ in range(2))
        noise = generator.standard_normal((200, 200))
        found = [
            vbmf_rank(np.linalg.svd(noise + strength * u @ v.T, compute_uv=False) ** 2, (200, 200))
            for strength in (10, 60)
        ]
        assert found == [0, 1]

    @given(
        energies=st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
        longer=st.integers(0, 30),
        scale=st.sampled_from([1e-12, 1.0, 1e12]),
    )
    def test_depends_on_neither_scale_nor_orientation(self, energies, longer, scale):
        spectrum = np.sort(np.array([*energies, 1.0]))[::-1]
        small = len(spectrum)
        found = vbmf_rank(spectrum, (small, small + longer))
        assert 0 <= found <= small
        assert vbmf_rank(spectrum, (small + longer, small)) == found
        # Not exactly: an energy may lie on the threshold.
        assert abs(vbmf_rank(spectrum * scale, (small, small + longer)) - found) <= 1

    def test_takes_dead_directions(self):
        """Most of a kernel may be zero, where neurons died."""
        matrix = np.zeros((60, 60))
        matrix[:20, :20] = noisy(20, 20, 2, 0.01, 0)
        choice = chosen(VbmfRank(), 60, 60, error_curve(matrix[np.newaxis]))
        assert 2 <= choice.rank <= 20

    def test_takes_sums_over_groups(self):
        matrices = np.stack([noisy(100, 60, 5, 0.1, seed) for seed in range(3)])
        assert chosen(VbmfRank(), 100, 60, error_curve(matrices), groups=3).rank == 5


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
class TestAll:
    def test_a_zero_kernel_gets_rank_1(self, policy):
        if policy.needs_curves:
            assert chosen(policy, 30, 20, np.zeros(21)) == (1, "all zero")

    @pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (9, 1)])
    def test_a_vector_stays_dense(self, policy, m, n):
        choice = chosen(policy, m, n, curve_of([2.0]))
        assert choice.rank is None
        assert "rank 1 reaches break-even" in choice.reason

    @given(
        values=st.lists(st.floats(0, 1e3), min_size=1, max_size=20),
        longer=st.integers(0, 40),
    )
    def test_any_spectrum_gets_a_rank_that_makes_it_smaller_or_none(self, policy, values, longer):
        m, n = len(values), len(values) + longer
        rank = chosen(policy, m, n, curve_of(sorted(values, reverse=True))).rank
        assert rank is None or 1 <= rank < m * n / (m + n)

    def test_plans_a_model(self, policy, build):
        from exporter.lowrank.candidates import candidates

        found = candidates(Network(build("nested_sequential")))
        curves = {c.name: c.kernel.error_curve() for c in found}
        plan = policy.select(found, curves)
        assert [layer.name for layer in plan.layers] == ["body/first", "body/second", "head"]
        assert plan.ranks
        assert all(layer.reason for layer in plan.layers)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan])
@pytest.mark.parametrize("policy", [FractionRank, EnergyRank])
def test_a_part_is_between_0_and_1(policy, value):
    with pytest.raises(RecipeError, match=r"must be between 0 and 1\. Received: "):
        policy(value)
