from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.costs import rank_grid


def kernel(m, n, kind=Kernel, **options):
    layer = SimpleNamespace(count_params=lambda: m * n)
    given = {"variable": None, "read": None, "outputs": None, "positions": 1, **options}
    return kind(m=m, n=n, layer=layer, **given)


class TestRankGrid:
    def test_small_kernels_take_every_rank(self):
        assert rank_grid(kernel(36, 40)) == tuple(range(1, 19))

    def test_prefers_multiples_that_kernels_like(self):
        grid = rank_grid(kernel(1000, 1000))
        assert grid[:9] == (1, 2, 3, 4, 6, 8, 12, 16, 24)
        assert grid[-10:] == (224, 240, 256, 288, 320, 352, 384, 416, 448, 480)

    @given(m=st.integers(1, 60_000), n=st.integers(1, 60_000))
    def test_ends_below_break_even(self, m, n):
        grid = rank_grid(kernel(m, n))
        assert list(grid) == sorted(set(grid))
        assert len(grid) <= 64
        assert all(rank * (m + n) < m * n for rank in grid)
        limit = m * n / (m + n)
        assert not grid if limit <= 1 else grid[-1] >= 0.6 * limit or limit - grid[-1] <= 1

    def test_ends_at_the_full_rank_where_break_even_is_above_it(self):
        class Cheap(Kernel):
            break_even_rank = 100.0

        assert rank_grid(kernel(8, 6, Cheap)) == (1, 2, 3, 4, 5, 6)
