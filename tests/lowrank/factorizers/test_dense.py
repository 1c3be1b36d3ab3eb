import keras
import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.graph.signature import FREE_SIZE
from exporter.lowrank.factorizers import factorizer_for, reason_kept
from exporter.lowrank.linalg.truncation import Truncation


def dense(sample_shape=(20,), **arguments):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(
        **{"units": 12, "name": "layer", "bias_initializer": "normal", **arguments}
    )
    layer(keras.Input(sample_shape))
    return layer


def kernel_of(layer):
    (kernel,) = factorizer_for(layer).kernels(layer)
    return kernel


def replaced(layer, rank, *, merge=True):
    truncation = kernel_of(layer).truncate(rank, merge=merge)
    return factorizer_for(layer).replace(layer, {"": truncation}).layers


def test_is_the_best_approximation_with_s_merged_into_u():
    layer = dense()
    head, last = replaced(layer, 5)
    kernel = layer.kernel.numpy()
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    product = head.kernel.numpy() @ last.kernel.numpy()
    np.testing.assert_allclose(product, u[:, :5] * s[:5] @ vt[:5], atol=1e-5)
    # Orthonormal rows on the right: all of S is on the left.
    right = last.kernel.numpy()
    np.testing.assert_allclose(right @ right.T, np.eye(5), atol=1e-6)
    error = np.linalg.norm(kernel - product) / np.linalg.norm(kernel)
    truncation = kernel_of(layer).truncate(5)
    assert truncation.relative_error == pytest.approx(error, rel=1e-5)
    assert truncation.discarded_energy == pytest.approx(error**2, rel=1e-5)


def test_without_merge_has_three_layers_with_a_diagonal_between():
    layers = replaced(dense(), 5, merge=False)
    assert [part.name for part in layers] == ["layer_u", "layer_s", "layer"]
    u, s, vt = (part.kernel.numpy() for part in layers)
    assert s.shape == (5, 5)
    np.testing.assert_array_equal(s, np.diag(np.diag(s)))
    np.testing.assert_allclose(u.T @ u, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(vt @ vt.T, np.eye(5), atol=1e-6)


@pytest.mark.parametrize(
    ("sample_shape", "positions"), [((20,), 1), ((5, 20), 5), ((None, 20), FREE_SIZE)]
)
def test_macs_are_products_with_the_kernel_at_every_position(sample_shape, positions):
    kernel = kernel_of(dense(sample_shape))
    assert kernel.macs(None) == positions * 20 * 12
    assert kernel.macs(3) == positions * 3 * (20 + 12)
    assert kernel.macs(3, merge=False) == positions * (3 * (20 + 12) + 3 * 3)


@pytest.mark.parametrize("merge", [True, False])
def test_only_the_last_layer_has_bias_and_activation(merge):
    layer = dense(activation="tanh")
    *heads, last = replaced(layer, 3, merge=merge)
    np.testing.assert_array_equal(last.bias.numpy(), layer.bias.numpy())
    assert last.activation is keras.activations.tanh
    for head in heads:
        assert not head.use_bias
        assert head.activation is keras.activations.linear


def test_the_bias_moves_by_what_the_truncation_says():
    layer = dense()
    plain = kernel_of(layer).truncate(3)
    moved = Truncation(plain.matrices, np.arange(12.0)[None], plain.discarded_energy)
    last = factorizer_for(layer).replace(layer, {"": moved}).layers[-1]
    np.testing.assert_allclose(last.bias.numpy() - layer.bias.numpy(), np.arange(12), atol=1e-6)


def test_regularizers_are_kept_and_kernel_constraints_are_not():
    layer = dense(
        kernel_regularizer=keras.regularizers.L2(0.25),
        bias_regularizer=keras.regularizers.L1(0.5),
        activity_regularizer=keras.regularizers.L1(0.125),
        kernel_constraint="non_neg",
        bias_constraint="non_neg",
    )
    head, last = replaced(layer, 3)
    for part in (head, last):
        assert part.kernel_regularizer.get_config() == {"l2": 0.25}
        assert part.kernel_constraint is None
    assert last.bias_regularizer.get_config() == {"l1": 0.5}
    assert last.activity_regularizer.get_config() == {"l1": 0.125}
    assert isinstance(last.bias_constraint, keras.constraints.NonNeg)
    assert head.activity_regularizer is None


def test_quantized_layers_are_not_supported():
    layer = dense()
    layer.quantize("int8")
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == "is quantized already"


def test_adapted_layers_are_not_supported():
    layer = dense()
    layer.enable_lora(2)
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == "has a LoRA adapter beside its kernel"


def test_kernels_that_are_not_finite_are_refused_by_name():
    layer = dense(name="diverged")
    kernel = layer.kernel.numpy().copy()
    kernel[:2, 0] = np.nan
    layer.kernel.assign(kernel)
    with pytest.raises(ModelError, match=r"'diverged'.*Received: 2 NaN or infinite.*of 240"):
        kernel_of(layer).truncate(3)
