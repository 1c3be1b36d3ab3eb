import keras
import numpy as np
import pytest

from exporter.errors import ModelError, RecipeError
from exporter.lowrank.factorizers import FACTORIZERS, FREE_SIZE, factorizer_for

# For each kind in the table: the arguments of a layer, and the shape of a sample it takes.
CASES = {
    "Dense": [
        pytest.param({"units": 30}, (20,), id="tall"),
        pytest.param({"units": 12}, (20,), id="wide"),
        pytest.param({"units": 16, "activation": "relu"}, (16,), id="square"),
        pytest.param({"units": 9, "use_bias": False}, (14,), id="no_bias"),
        pytest.param({"units": 1, "activation": "sigmoid"}, (14,), id="one_unit"),
        pytest.param({"units": 8, "activation": "softmax"}, (5, 11), id="sequences"),
        pytest.param({"units": 10, "dtype": "float64"}, (8,), id="float64"),
    ]
}


def built(kind, sample_shape, **arguments):
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, kind)(**{"name": "layer", **arguments})
    layer(keras.Input(sample_shape))
    generator = np.random.default_rng(0)
    layer.set_weights([generator.normal(size=weight.shape) for weight in layer.weights])
    return layer


def apply(layers, inputs):
    for layer in layers:
        inputs = layer(inputs)
    return keras.ops.convert_to_numpy(inputs)


def dense(**arguments):
    return built("Dense", (20,), **{"units": 12, **arguments})


def all_cases():
    """Every row of the table with each of its cases; a row without any fails the collection."""
    for factorizer in FACTORIZERS:
        for case in CASES[factorizer.kind]:
            yield pytest.param((factorizer, *case.values), id=f"{factorizer.kind}-{case.id}")


@pytest.mark.parametrize("case", list(all_cases()))
class TestConformance:
    """What every row of the table promises."""

    @pytest.mark.parametrize("merge", [True, False])
    def test_full_rank_gives_the_same_output(self, case, merge):
        factorizer, arguments, sample_shape = case
        layer = built(factorizer.kind, sample_shape, **arguments)
        dtype = layer.compute_dtype
        inputs = np.random.default_rng(1).normal(size=(6, *sample_shape)).astype(dtype)
        factors = factorizer.factorize(layer, factorizer.full_rank(layer), merge=merge)
        # Rounding of about twenty products of size one, in the units of the dtype.
        tolerance = 64 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            apply(factors.layers, inputs), apply([layer], inputs), rtol=tolerance, atol=tolerance
        )
        assert factors.rank == factorizer.full_rank(layer)
        assert factors.relative_error == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("merge", [True, False])
    def test_params_counts_what_the_layers_hold(self, case, merge):
        factorizer, arguments, sample_shape = case
        layer = built(factorizer.kind, sample_shape, **arguments)
        assert factorizer.params(layer, None, merge=merge) == layer.count_params()
        for rank in {1, factorizer.full_rank(layer)}:
            factors = factorizer.factorize(layer, rank, merge=merge)
            held = sum(part.count_params() for part in factors.layers)
            assert factorizer.params(layer, rank, merge=merge) == held

    def test_break_even_rank_divides_smaller_from_larger(self, case):
        factorizer, arguments, sample_shape = case
        layer = built(factorizer.kind, sample_shape, **arguments)
        limit = factorizer.break_even_rank(layer)
        m, n = factorizer.matrix_shape(layer)
        assert limit == pytest.approx(m * n / (m + n))
        for rank in range(1, factorizer.full_rank(layer) + 1):
            smaller = factorizer.params(layer, rank) < factorizer.params(layer, None)
            assert smaller == (rank < limit)

    def test_names_dtype_policy_and_trainability_are_kept(self, case):
        factorizer, arguments, sample_shape = case
        for trainable in (True, False):
            layer = built(factorizer.kind, sample_shape, trainable=trainable, **arguments)
            factors = factorizer.factorize(layer, 1)
            assert [part.name for part in factors.layers] == ["layer_u", "layer"]
            for part in factors.layers:
                assert part.dtype_policy == layer.dtype_policy
                assert part.trainable is trainable

    def test_the_original_is_left_as_it_was(self, case):
        factorizer, arguments, sample_shape = case
        layer = built(factorizer.kind, sample_shape, **arguments)
        before, config = layer.get_weights(), layer.get_config()
        factorizer.factorize(layer, 1)
        assert layer.get_config() == config
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_supports_its_kind_and_no_subclass(self, case):
        factorizer, arguments, sample_shape = case
        layer = built(factorizer.kind, sample_shape, **arguments)
        assert factorizer.supports(layer)
        assert factorizer_for(layer) is factorizer

        subclass = type("Derived", (type(layer),), {})
        derived = subclass(**arguments)
        derived.build((None, *sample_shape))
        assert not factorizer.supports(derived)
        assert factorizer_for(derived) is None


class TestDense:
    def test_is_the_best_approximation_with_s_merged_into_u(self):
        layer = dense()
        factors = factorizer_for(layer).factorize(layer, 5)
        kernel = layer.kernel.numpy()
        u, s, vt = np.linalg.svd(kernel, full_matrices=False)
        product = factors.layers[0].kernel.numpy() @ factors.layers[1].kernel.numpy()
        np.testing.assert_allclose(product, u[:, :5] * s[:5] @ vt[:5], atol=1e-5)
        # Orthonormal rows on the right: all of S is on the left.
        right = factors.layers[1].kernel.numpy()
        np.testing.assert_allclose(right @ right.T, np.eye(5), atol=1e-6)
        error = np.linalg.norm(kernel - product) / np.linalg.norm(kernel)
        assert factors.relative_error == pytest.approx(error, rel=1e-5)
        assert factors.discarded_energy == pytest.approx(error**2, rel=1e-5)

    def test_without_merge_has_three_layers_with_a_diagonal_between(self):
        layer = dense()
        factors = factorizer_for(layer).factorize(layer, 5, merge=False)
        assert [part.name for part in factors.layers] == ["layer_u", "layer_s", "layer"]
        u, s, vt = (part.kernel.numpy() for part in factors.layers)
        assert s.shape == (5, 5)
        np.testing.assert_array_equal(s, np.diag(np.diag(s)))
        np.testing.assert_allclose(u.T @ u, np.eye(5), atol=1e-6)
        np.testing.assert_allclose(vt @ vt.T, np.eye(5), atol=1e-6)

    @pytest.mark.parametrize(
        ("sample_shape", "positions"), [((20,), 1), ((5, 20), 5), ((None, 20), FREE_SIZE)]
    )
    def test_macs_are_products_with_the_kernel_at_every_position(self, sample_shape, positions):
        layer = built("Dense", sample_shape, units=12)
        factorizer = factorizer_for(layer)
        assert factorizer.macs(layer, None) == positions * 20 * 12
        assert factorizer.macs(layer, 3) == positions * 3 * (20 + 12)
        assert factorizer.macs(layer, 3, merge=False) == positions * (3 * (20 + 12) + 3 * 3)

    @pytest.mark.parametrize("merge", [True, False])
    def test_only_the_last_layer_has_bias_and_activation(self, merge):
        layer = dense(activation="tanh")
        *heads, last = factorizer_for(layer).factorize(layer, 3, merge=merge).layers
        np.testing.assert_array_equal(last.bias.numpy(), layer.bias.numpy())
        assert last.activation is keras.activations.tanh
        for head in heads:
            assert not head.use_bias
            assert head.activation is keras.activations.linear

    def test_regularizers_are_kept_and_kernel_constraints_are_not(self):
        layer = dense(
            kernel_regularizer=keras.regularizers.L2(0.25),
            bias_regularizer=keras.regularizers.L1(0.5),
            activity_regularizer=keras.regularizers.L1(0.125),
            kernel_constraint="non_neg",
            bias_constraint="non_neg",
        )
        head, last = factorizer_for(layer).factorize(layer, 3).layers
        for part in (head, last):
            assert part.kernel_regularizer.get_config() == {"l2": 0.25}
            assert part.kernel_constraint is None
        assert last.bias_regularizer.get_config() == {"l1": 0.5}
        assert last.activity_regularizer.get_config() == {"l1": 0.125}
        assert isinstance(last.bias_constraint, keras.constraints.NonNeg)
        assert head.activity_regularizer is None

    def test_mixed_precision_keeps_float32_variables(self):
        layer = dense(dtype="mixed_float16")
        for part in factorizer_for(layer).factorize(layer, 3).layers:
            assert (part.compute_dtype, part.variable_dtype) == ("float16", "float32")

    def test_quantized_layers_are_not_supported(self):
        layer = dense()
        layer.quantize("int8")
        assert factorizer_for(layer) is None

    def test_lora_layers_are_not_supported(self):
        layer = dense()
        layer.enable_lora(2)
        assert factorizer_for(layer) is None

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_kernels_that_are_not_finite_are_refused_by_name(self, value):
        layer = dense(name="diverged")
        kernel, bias = layer.get_weights()
        kernel[:2, 0] = value
        layer.set_weights([kernel, bias])
        with pytest.raises(ModelError, match=r"'diverged'.*Received: 2 NaN or infinite.*of 240"):
            factorizer_for(layer).factorize(layer, 3)

    @pytest.mark.parametrize("rank", [0, 13])
    def test_ranks_out_of_range_are_refused(self, rank):
        layer = dense()
        with pytest.raises(RecipeError, match=f"within 1 and 12.*Received: {rank}"):
            factorizer_for(layer).factorize(layer, rank)


@pytest.mark.parametrize("kind", ["ReLU", "Flatten", "BatchNormalization"])
def test_other_kinds_have_no_factorizer(kind):
    assert factorizer_for(getattr(keras.layers, kind)()) is None
