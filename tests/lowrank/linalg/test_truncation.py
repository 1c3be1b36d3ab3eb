from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ModelError, RecipeError
from exporter.lowrank.linalg import moments as moments_module
from exporter.lowrank.linalg import truncation
from exporter.lowrank.linalg.moments import Fisher, Moments
from exporter.lowrank.linalg.truncation import error_curve, truncate

SAMPLES = 400

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 9))
SEEDS = st.integers(0, 99)


@pytest.fixture
def no_ridge():
    """Makes the closed forms exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncation, "INPUT_RIDGES", (0.0,))
        patch.setattr(moments_module, "GRADIENT_RIDGE", 1e-9)
        yield


class Problem:
    """A stack of kernels, inputs of each, and what became of the inputs further up."""

    def __init__(self, g, m, n, seed):
        generator = np.random.default_rng(seed)
        self.generator = generator
        self.kernel = generator.normal(size=(g, m, n))
        mixing = generator.normal(size=(m, m)) * 0.7 ** np.arange(m)
        self.x = generator.normal(size=(g, SAMPLES, m)) @ mixing + generator.normal(0, 3, m)
        self.y = self.x @ self.kernel
        blur = np.eye(m) + 0.3 * generator.normal(size=(m, m))
        noise = 0.2 * generator.normal(size=self.x.shape)
        self.moved_x = self.x @ blur + noise + generator.normal(size=m)
        self.z = self.moved_x @ self.kernel
        factor = generator.normal(size=(g, n, n)) * 0.5 ** np.arange(n)
        self.fisher = Fisher(factor @ factor.swapaxes(1, 2))

    def moments(self, *, weighted=False, moved=False, **changes):
        fields = {"mean": self.y.mean(axis=1), "scatter": covariance(self.y, self.y)}
        if weighted:
            fields["fisher"] = self.fisher
        if moved:
            fields["compressed_mean"] = self.z.mean(axis=1)
            fields["compressed_scatter"] = covariance(self.z, self.z)
            fields["cross"] = covariance(self.z, self.y)
        return Moments(**fields, **changes)

    def error(self, result, *, weighted=False, moved=False):
        """The mean squared error of the outputs, with the bias put right."""
        return self.error_of(product(result), result.bias_shift, weighted=weighted, moved=moved)

    def error_of(self, kernel, shift, *, weighted=False, moved=False):
        outputs = (self.moved_x if moved else self.x) @ kernel + shift[:, None]
        residual = self.y - outputs
        if weighted:
            residual = residual @ self.fisher.root
        return (residual**2).sum(axis=(0, 2)).mean()

    def best_shift(self, kernel, *, moved=False):
        x = self.moved_x if moved else self.x
        return (self.y - x @ kernel).mean(axis=1)


def covariance(left, right):
    left, right = (rows - rows.mean(axis=1, keepdims=True) for rows in (left, right))
    return left.swapaxes(1, 2) @ right / SAMPLES


def product(result):
    first, *others = result.matrices
    for matrix in others:
        first = first @ matrix
    return first


def drawn(size, data, seed):
    g, m, n = size
    return Problem(g, m, n, seed), data.draw(st.integers(1, min(m, n)), label="rank")


def tails(values, rank):
    """The sums of what is beyond the leading ``rank``, over a stack."""
    return np.sort(values, axis=-1)[..., ::-1][..., rank:].sum()


class TestPlain:
    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_is_the_best_of_the_kernel(self, size, seed, data):
        problem, rank = drawn(size, data, seed)
        result = truncate(problem.kernel, rank)
        error = ((problem.kernel - product(result)) ** 2).sum()
        best = tails(np.linalg.svd(problem.kernel, compute_uv=False) ** 2, rank)
        total = (problem.kernel**2).sum()
        assert error == pytest.approx(best, abs=1e-12 * total)
        assert result.discarded_energy * total == pytest.approx(error, abs=1e-12 * total)
        assert error_curve(problem.kernel)[rank] == pytest.approx(error, abs=1e-12 * total)
        assert result.bias_shift is None

    @given(size=SIZES, seed=SEEDS)
    def test_curve_goes_from_everything_to_nothing(self, size, seed):
        kernel = Problem(*size, seed).kernel
        curve = error_curve(kernel)
        assert len(curve) == min(size[1:]) + 1
        assert curve[0] == pytest.approx((kernel**2).sum())
        assert curve[-1] == 0
        assert (np.diff(curve) <= 0).all()


@pytest.mark.usefixtures("no_ridge")
class TestWhitened:
    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_error_is_the_closed_form_and_what_was_predicted(self, size, seed, data):
        """The trailing principal components of the outputs, and nothing else, are lost."""
        problem, rank = drawn(size, data, seed)
        moments = problem.moments()
        result = truncate(problem.kernel, rank, moments)
        total = np.trace(moments.scatter, axis1=1, axis2=2).sum()
        best = tails(np.linalg.eigvalsh(moments.scatter), rank)
        error = problem.error(result)
        assert error == pytest.approx(best, abs=1e-9 * total)
        assert result.discarded_energy * total == pytest.approx(error, abs=1e-9 * total)
        assert error_curve(problem.kernel, moments)[rank] == pytest.approx(error, abs=1e-9 * total)

    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_no_other_map_of_that_rank_has_a_smaller_error(self, size, seed, data):
        problem, rank = drawn(size, data, seed)
        result = truncate(problem.kernel, rank, problem.moments())
        error = problem.error(result)
        others = [product(truncate(problem.kernel, rank))]
        for scale in (1e-3, 1e-1, 1):
            thin, wide = (
                matrix * (1 + scale * problem.generator.normal(size=matrix.shape))
                for matrix in result.matrices
            )
            others.append(thin @ wide)
        slack = 1e-12 * problem.y.var(axis=1).sum()
        for other in others:
            assert error <= problem.error_of(other, problem.best_shift(other)) + slack

    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_without_a_bias_the_error_about_zero_is_the_least(self, size, seed, data):
        """Moments about zero stand for the covariances, and zeros for the means."""
        problem, rank = drawn(size, data, seed)
        second = problem.y.swapaxes(1, 2) @ problem.y / SAMPLES
        moments = Moments(np.zeros(second.shape[:2]), second)
        result = truncate(problem.kernel, rank, moments)
        np.testing.assert_array_equal(result.bias_shift, 0)
        best = tails(np.linalg.eigvalsh(second), rank)
        total = np.trace(second, axis1=1, axis2=2).sum()
        assert problem.error(result) == pytest.approx(best, abs=1e-9 * total)


@pytest.mark.usefixtures("no_ridge")
class TestWeightedByTheGradient:
    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_error_is_the_closed_form_and_what_was_predicted(self, size, seed, data):
        problem, rank = drawn(size, data, seed)
        moments = problem.moments(weighted=True)
        result = truncate(problem.kernel, rank, moments)
        root = problem.fisher.root
        metric = root.swapaxes(1, 2) @ moments.scatter @ root
        total = np.trace(metric, axis1=1, axis2=2).sum()
        error = problem.error(result, weighted=True)
        assert error == pytest.approx(tails(np.linalg.eigvalsh(metric), rank), abs=1e-6 * total)
        assert result.discarded_energy * total == pytest.approx(error, abs=1e-6 * total)
        assert error_curve(problem.kernel, moments)[rank] == pytest.approx(error, abs=1e-6 * total)

    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_beats_the_others_by_the_error_that_matters(self, size, seed, data):
        problem, rank = drawn(size, data, seed)
        error = problem.error(
            truncate(problem.kernel, rank, problem.moments(weighted=True)), weighted=True
        )
        plain = product(truncate(problem.kernel, rank))
        plain_error = problem.error_of(plain, problem.best_shift(plain), weighted=True)
        whitened = truncate(problem.kernel, rank, problem.moments())
        total = problem.error_of(0 * plain, problem.best_shift(0 * plain), weighted=True)
        assert error <= plain_error + 1e-6 * total
        assert error <= problem.error(whitened, weighted=True) + 1e-6 * total


@pytest.mark.usefixtures("no_ridge")
class TestCascade:
    @given(size=SIZES, seed=SEEDS, weighted=st.booleans(), data=st.data())
    def test_makes_up_for_errors_of_earlier_layers(self, size, seed, weighted, data):
        problem, rank = drawn(size, data, seed)
        cascade = truncate(problem.kernel, rank, problem.moments(weighted=weighted, moved=True))
        error = problem.error(cascade, weighted=weighted, moved=True)
        ignorant = truncate(problem.kernel, rank, problem.moments(weighted=weighted))
        total = problem.error_of(
            0 * problem.kernel, problem.best_shift(0 * problem.kernel), weighted=weighted
        )
        assert error <= problem.error(ignorant, weighted=weighted, moved=True) + 1e-6 * total
        # Nor does it help the other one to have its means put right.
        kernel = product(ignorant)
        shift = problem.best_shift(kernel, moved=True)
        assert error <= problem.error_of(kernel, shift, weighted=weighted, moved=True) + (
            1e-6 * total
        )

    @given(m=st.integers(1, 12), n=st.integers(1, 9), seed=SEEDS, data=st.data())
    def test_is_reduced_rank_regression(self, m, n, seed, data):
        """What is lost is what no linear map of z predicts, and the trailing components."""
        problem, rank = drawn((1, m, n), data, seed)
        moments = problem.moments(moved=True)
        result = truncate(problem.kernel, rank, moments)
        cross = moments.cross[0]
        explained = cross.T @ np.linalg.pinv(moments.compressed_scatter[0], rcond=1e-9) @ cross
        total = np.trace(moments.scatter[0])
        unexplained = total - np.trace(explained)
        error = problem.error(result, moved=True)
        best = unexplained + tails(np.linalg.eigvalsh(explained), rank)
        assert error == pytest.approx(best, abs=1e-6 * total)
        assert result.discarded_energy * total == pytest.approx(error, abs=1e-6 * total)

    @given(size=SIZES, seed=SEEDS)
    def test_full_rank_is_least_squares(self, size, seed):
        problem = Problem(*size, seed)
        full = min(size[1:])
        result = truncate(problem.kernel, full, problem.moments(moved=True))
        total = np.trace(problem.moments().scatter, axis1=1, axis2=2).sum()
        least = 0.0
        for x, y, kernel in zip(problem.moved_x, problem.y, problem.kernel, strict=True):
            z = np.column_stack((x @ kernel, np.ones(SAMPLES)))
            fit, *_ = np.linalg.lstsq(z, y, rcond=1e-9)
            least += ((y - z @ fit) ** 2).sum() / SAMPLES
        assert problem.error(result, moved=True) == pytest.approx(least, abs=1e-6 * total)
        assert result.discarded_energy * total == pytest.approx(least, abs=1e-6 * total)


KINDS = st.fixed_dictionaries({"weighted": st.booleans(), "moved": st.booleans()})


@given(size=SIZES, seed=SEEDS, kind=KINDS, data=st.data())
def test_the_means_agree_exactly(size, seed, kind, data):
    problem, rank = drawn(size, data, seed)
    result = truncate(problem.kernel, rank, problem.moments(**kind))
    x = problem.moved_x if kind["moved"] else problem.x
    outputs = x @ product(result) + result.bias_shift[:, None]
    np.testing.assert_allclose(outputs.mean(axis=1), problem.y.mean(axis=1), atol=1e-8)


@given(size=SIZES, seed=SEEDS, weighted=st.booleans())
def test_full_rank_reproduces(size, seed, weighted):
    problem = Problem(*size, seed)
    for moments in (None, problem.moments(weighted=weighted)):
        result = truncate(problem.kernel, min(size[1:]), moments)
        assert result.discarded_energy == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(product(result), problem.kernel, atol=1e-6)
        if moments is not None:
            np.testing.assert_allclose(result.bias_shift, 0, atol=1e-5)


@given(size=SIZES, seed=SEEDS, kind=st.none() | KINDS, data=st.data())
def test_unmerged_factors_are_an_svd_of_the_same_product(size, seed, kind, data):
    problem, rank = drawn(size, data, seed)
    moments = None if kind is None else problem.moments(**kind)
    merged = truncate(problem.kernel, rank, moments)
    split = truncate(problem.kernel, rank, moments, merge=False)
    u, s, vt = split.matrices
    g, m, n = problem.kernel.shape
    assert [part.shape for part in merged.matrices] == [(g, m, rank), (g, rank, n)]
    assert [part.shape for part in split.matrices] == [(g, m, rank), (g, rank, rank), (g, rank, n)]
    scale = np.abs(product(merged)).max()
    np.testing.assert_allclose(product(split), product(merged), atol=1e-9 * scale)
    for part in (u.swapaxes(1, 2) @ u, vt @ vt.swapaxes(1, 2)):
        np.testing.assert_allclose(part, [np.eye(rank)] * g, atol=1e-9)
    diagonal = np.diagonal(s, axis1=1, axis2=2)
    np.testing.assert_array_equal(s, diagonal[..., None] * np.eye(rank))
    assert (diagonal >= 0).all()
    assert (np.diff(diagonal, axis=1) <= 1e-12 * scale).all()
    assert split.discarded_energy == merged.discarded_energy


@given(m=st.integers(1, 8), n=st.integers(1, 8), kind=st.none() | KINDS, data=st.data())
def test_groups_are_truncated_each_on_its_own(m, n, kind, data):
    problem, rank = drawn((3, m, n), data, m * n)
    moments = None if kind is None else problem.moments(**kind)
    whole = product(truncate(problem.kernel, rank, moments))
    curves = []
    for group in range(3):
        only = slice(group, group + 1)
        part = None
        if moments is not None:
            fields = {
                name: None if value is None else value[only]
                for name, value in vars(moments).items()
                if name != "fisher"
            }
            weights = None if moments.fisher is None else Fisher(moments.fisher.matrix[only])
            part = Moments(**fields, fisher=weights)
        alone = product(truncate(problem.kernel[only], rank, part))
        np.testing.assert_allclose(whole[only], alone, atol=1e-9)
        curves.append(error_curve(problem.kernel[only], part))
    np.testing.assert_allclose(error_curve(problem.kernel, moments), sum(curves), rtol=1e-9)


class TestRidge:
    @given(size=SIZES, seed=SEEDS, data=st.data())
    def test_hardly_costs_anything_where_the_data_say_it_all(self, size, seed, data):
        problem, rank = drawn(size, data, seed)
        moments = problem.moments()
        result = truncate(problem.kernel, rank, moments)
        total = np.trace(moments.scatter, axis1=1, axis2=2).sum()
        best = tails(np.linalg.eigvalsh(moments.scatter), rank)
        assert problem.error(result) <= best + 1e-3 * total
        assert result.discarded_energy * total == pytest.approx(best, abs=1e-3 * total)

    def test_keeps_what_the_data_did_not_show(self):
        """Of directions that no sample has, the largest of the kernel stay."""
        kernel = np.diag([1.0, 5.0, 3.0])[None]
        scatter = np.diag([1.0, 0.0, 0.0])[None]
        result = truncate(kernel, 2, Moments(np.zeros((1, 3)), scatter))
        np.testing.assert_allclose(product(result)[0], np.diag([1.0, 5.0, 0.0]), atol=1e-12)

    @pytest.mark.parametrize("moved", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_outputs_that_never_change_are_no_trouble(self, moved, weighted):
        problem = Problem(1, 5, 4, seed=0)
        problem.x[:] = problem.x[:, :1]
        problem.moved_x[:] = problem.moved_x[:, :1]
        problem.y, problem.z = problem.x @ problem.kernel, problem.moved_x @ problem.kernel
        moments = problem.moments(moved=moved, weighted=weighted)
        result = truncate(problem.kernel, 2, moments)
        assert all(np.isfinite(part).all() for part in (*result.matrices, result.bias_shift))
        outputs = (problem.moved_x if moved else problem.x) @ product(result)
        np.testing.assert_allclose(outputs + result.bias_shift, problem.y, atol=1e-9)

    @pytest.mark.parametrize("moved", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_where_the_data_show_nothing_the_kernel_decides(self, moved, weighted):
        """As behind a dead activation, whose outputs are all zeros."""
        problem = Problem(2, 5, 4, seed=0)
        problem.x[:] = problem.moved_x[:] = 0
        problem.y, problem.z = problem.x @ problem.kernel, problem.moved_x @ problem.kernel
        result = truncate(problem.kernel, 2, problem.moments(moved=moved, weighted=weighted))
        np.testing.assert_array_equal(result.bias_shift, 0)
        if not weighted:
            expected = truncate(problem.kernel, 2)
            np.testing.assert_allclose(product(result), product(expected), atol=1e-6)
            assert result.discarded_energy == 0

    @pytest.mark.parametrize("moved", [False, True])
    def test_moments_that_are_not_finite_are_refused(self, moved):
        problem = Problem(1, 5, 4, seed=0)
        problem.y[0, 0, 0] = problem.z[0, 0, 0] = np.nan
        with pytest.raises(ModelError, match=r"NaN or infinite .*"):
            truncate(problem.kernel, 2, problem.moments(moved=moved))

    @pytest.mark.parametrize("seed", range(4))
    def test_what_float32_rounds_hardly_matters(self, seed):
        """Also where the kernel all but ignores some directions, whose moments are noise then."""
        problem = Problem(1, 30, 20, seed)
        u, s, vt = np.linalg.svd(problem.kernel, full_matrices=False)
        problem.kernel = (u * (s * 10.0 ** -np.linspace(0, 8, 20))[:, None]) @ vt
        problem.y, problem.z = problem.x @ problem.kernel, problem.moved_x @ problem.kernel
        exact = problem.moments(moved=True)

        def rounded(array):
            return array * (1 + 2e-8 * problem.generator.standard_normal(array.shape))

        def symmetric(array):
            return (array + array.swapaxes(1, 2)) / 2

        noisy = replace(
            exact,
            compressed_scatter=symmetric(rounded(exact.compressed_scatter)),
            cross=rounded(exact.cross),
        )
        expected, actual = (
            problem.error(truncate(problem.kernel, 4, moments), moved=True)
            for moments in (exact, noisy)
        )
        assert actual == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("moved", [False, True])
    def test_a_kernel_of_zeros_is_no_trouble(self, moved):
        problem = Problem(2, 5, 4, seed=0)
        problem.kernel[:] = 0
        problem.y, problem.z = problem.x @ problem.kernel, problem.moved_x @ problem.kernel
        for moments in (None, problem.moments(moved=moved)):
            result = truncate(problem.kernel, 2, moments)
            assert result.discarded_energy == result.relative_error == 0
            np.testing.assert_array_equal(product(result), 0)
            np.testing.assert_array_equal(error_curve(problem.kernel, moments), 0)


@pytest.mark.parametrize("kind", [None, {}, {"moved": True}])
def test_refuses_ranks_out_of_range_and_values_that_are_not_finite(kind):
    problem = Problem(1, 3, 5, seed=0)
    moments = None if kind is None else problem.moments(**kind)
    with pytest.raises(RecipeError, match=r"Received: 6\."):
        truncate(problem.kernel, 6, moments)
    problem.kernel[0, 1, 1] = np.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        truncate(problem.kernel, 2, moments)


class TestFolds:
    """What is held out chooses the ridge."""

    @staticmethod
    def moments_of(y, z):
        centred_y, centred_z = y - y.mean(0), z - z.mean(0)
        count = len(y)
        return Moments(
            mean=y.mean(0)[np.newaxis],
            scatter=(centred_y.T @ centred_y / count)[np.newaxis],
            compressed_mean=z.mean(0)[np.newaxis],
            compressed_scatter=(centred_z.T @ centred_z / count)[np.newaxis],
            cross=(centred_z.T @ centred_y / count)[np.newaxis],
        )

    def test_too_few_samples_do_not_make_up_errors(self):
        """With fewer samples than outputs, a regression fits the noise of what is compressed."""
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(60, 60)) * 0.8 ** np.arange(60)

        def draw(count):
            x = rng.normal(size=(count, 60))
            return x @ kernel, (x + rng.normal(size=x.shape)) @ kernel

        y, z = draw(50)
        whole = self.moments_of(y, z)
        folds = self.moments_of(y[:35], z[:35]), self.moments_of(y[35:], z[35:])
        fresh_y, fresh_z = draw(5000)

        def error(moments):
            truncation = truncate(kernel[np.newaxis], 5, moments)
            first, second = (matrices[0] for matrices in truncation.matrices)
            # The outputs of the cut kernel, in terms of those of the kernel.
            cut = fresh_z @ np.linalg.solve(kernel, first) @ second + truncation.bias_shift
            return np.mean((fresh_y - cut) ** 2)

        assert error(replace(whole, folds=folds)) < 0.9 * error(whole)

    def test_factors_are_of_like_scale(self):
        """Whatever the units of the gradient: training and half precision depend on it."""
        rng = np.random.default_rng(0)
        kernel, outputs = rng.normal(size=(1, 9, 7)), rng.normal(size=(200, 7))
        moments = replace(
            self.moments_of(outputs, outputs), fisher=Fisher(1e-12 * np.eye(7)[np.newaxis])
        )
        first, second = truncate(kernel, 3, moments).matrices
        np.testing.assert_allclose(second[0] @ second[0].T, np.eye(3), atol=1e-9)
        assert 0.1 < np.linalg.norm(first) / np.linalg.norm(kernel) < 10


class IllConditioned:
    """A kernel whose inputs do not determine its weights, in a model that lost some of them."""

    rank = 5

    def __init__(self, kind, seed):
        self._kind, self._generator = kind, np.random.default_rng(seed)
        self.kernel = self._generator.normal(size=(40, 30))
        self._mixing = self._generator.normal(size=(3 if kind == "low rank" else 8, 40))
        basis, _ = np.linalg.qr(self._generator.normal(size=(40, 20)))
        self._kept = basis @ basis.T

    def draw(self, count):
        """Returns the outputs of the kernel in the original and in the compressed model."""
        generator = self._generator
        x = generator.normal(size=(count, len(self._mixing))) @ self._mixing
        if self._kind != "low rank":
            x += 0.3 * generator.normal(size=x.shape)
        x = np.maximum(x, 0)
        if self._kind == "dead":
            x[:, :10] *= 1e-3 * (generator.random((count, 10)) < 0.01)
        if self._kind == "duplicated":
            x[:, 20:] = x[:, :20]
        if self._kind == "outliers":
            x *= np.where(generator.random((count, 1)) < 0.01, 30, 1)
        return x @ self.kernel, x @ self._kept @ self.kernel

    def moments(self, y, z):
        parts = (slice(None), slice(len(y) * 3 // 4), slice(len(y) * 3 // 4, None))
        whole, *folds = (TestFolds.moments_of(y[part], z[part]) for part in parts)
        return replace(whole, folds=tuple(folds))

    def product(self, moments):
        truncation = truncate(self.kernel[np.newaxis], self.rank, moments)
        first, second = (matrices[0] for matrices in truncation.matrices)
        return first @ second, truncation

    def growth(self, product):
        """The largest row of a product over that of the kernel."""
        rows, wanted = (np.linalg.norm(each, axis=1).max() for each in (product, self.kernel))
        return rows / wanted


@pytest.mark.parametrize("kind", ["dead", "duplicated", "low rank", "few", "outliers"])
@given(seed=SEEDS)
def test_ill_conditioned_layers_are_cut_no_better_than_can_be_and_better_than_by_weights(
    kind, seed
):
    problem = IllConditioned(kind, seed)
    y, z = problem.draw(45 if kind == "few" else 600)
    product, truncation = problem.product(problem.moments(y, z))
    # No outputs of this rank can be nearer to y, whatever they are made from.
    values = np.linalg.svd(y - y.mean(axis=0), compute_uv=False) ** 2
    assert values[problem.rank :].sum() / values.sum() - 1e-9 <= truncation.discarded_energy <= 1
    fresh_y, fresh_z = problem.draw(4000)
    by_weights = truncate(problem.kernel[np.newaxis], problem.rank)
    errors = []
    for weights in (product, by_weights.matrices[0][0] @ by_weights.matrices[1][0]):
        cut = fresh_z @ np.linalg.pinv(problem.kernel) @ weights
        errors.append(np.var(fresh_y - cut, axis=0).sum())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("kind", ["dead", "duplicated", "low rank"])
@given(seed=SEEDS)
def test_factors_larger_than_what_they_stand_for_are_avoided_where_it_costs_little(kind, seed):
    problem = IllConditioned(kind, seed)
    moments = problem.moments(*problem.draw(600))
    small, limited = problem.product(moments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncation, "MOST_GROWTH", np.inf)
        large, free = problem.product(moments)
    assert problem.growth(small) <= problem.growth(large) * (1 + 1e-6)
    assert limited.discarded_energy <= 1.5 * free.discarded_energy
    if problem.growth(large) > 8:
        assert problem.growth(small) < problem.growth(large) / 2


def test_rounding_of_float32_is_no_error_at_full_rank():
    problem = IllConditioned("plain", 0)
    y, _ = problem.draw(600)
    moments = problem.moments(y, y * (1 + 1e-7 * np.random.default_rng(0).normal(size=y.shape)))
    for factor in (1 - 2e-7, 1 + 2e-7):
        folds = tuple(replace(fold, cross=factor * fold.cross) for fold in moments.folds)
        moved = replace(moments, cross=factor * moments.cross, folds=folds)
        assert truncate(problem.kernel[np.newaxis], 30, moved).discarded_energy < 1e-5


def test_moments_that_contradict_each_other_are_an_error():
    problem = IllConditioned("plain", 0)
    moments = problem.moments(*problem.draw(600))
    with pytest.raises(ModelError, match=r"must not be negative\. Received: -"):
        problem.product(replace(moments, cross=30 * moments.cross, folds=None))
