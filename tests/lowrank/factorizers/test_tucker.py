import keras
import numpy as np
import pytest

from exporter.lowrank.factorizers import factorizer_for
from exporter.lowrank.linalg.svd import leading_eigenpairs


def conv(sample_shape=(8, 9, 6), **arguments):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Conv2D(**{"filters": 8, "kernel_size": 3, "name": "layer", **arguments})
    layer(keras.Input(sample_shape))
    return layer


def kernel_of(layer):
    (kernel,) = factorizer_for(layer, "tucker2").kernels(layer)
    return kernel


def product(truncation, shape):
    a, core, b = (matrices[0] for matrices in truncation.matrices)
    core = core.reshape(*shape[:2], a.shape[1], b.shape[0])
    return np.einsum("ca,hwab,bn->hwcn", a, core, b)


def test_the_core_keeps_the_geometry():
    layer = conv(strides=(2, 1), padding="same", activation="relu")
    truncation = kernel_of(layer).truncate(4)
    layers = factorizer_for(layer, "tucker2").replace(layer, {"": truncation}).layers
    assert [part.name for part in layers] == ["layer_u", "layer_s", "layer"]
    assert [part.kernel_size for part in layers] == [(1, 1), (3, 3), (1, 1)]
    assert [part.strides for part in layers] == [(1, 1), (2, 1), (1, 1)]
    assert [part.filters for part in layers] == [3, 4, 8]
    assert layers[-1].activation is keras.activations.relu


def test_the_error_is_that_of_the_product_and_no_larger_than_the_curve():
    layer = conv()
    kernel, tensor = kernel_of(layer), layer.kernel.numpy()
    curve = kernel.error_curve()
    for rank in range(1, kernel.full_rank + 1):
        truncation = kernel.truncate(rank)
        error = np.sum((tensor - product(truncation, tensor.shape)) ** 2)
        assert truncation.discarded_energy * np.sum(tensor**2) == pytest.approx(error, abs=1e-6)
        assert error <= curve[rank] + 1e-6


def test_the_curve_is_the_error_of_the_higher_order_svd():
    layer = conv()
    kernel, tensor = kernel_of(layer), layer.kernel.numpy().astype("float64")
    _, a = leading_eigenpairs(np.einsum("hwcn,hwdn->cd", tensor, tensor), kernel.input_rank(4))
    _, b = leading_eigenpairs(np.einsum("hwcn,hwcm->nm", tensor, tensor), 4)
    projected = np.einsum("hwcn,cd,nm->hwdm", tensor, a @ a.T, b @ b.T)
    assert kernel.error_curve()[4] == pytest.approx(np.sum((tensor - projected) ** 2))


def test_finds_a_kernel_of_low_rank():
    generator = np.random.default_rng(0)
    layer = conv()
    a, b = generator.normal(size=(6, 3)), generator.normal(size=(4, 8))
    layer.kernel.assign(np.einsum("ca,hwab,bn->hwcn", a, generator.normal(size=(3, 3, 3, 4)), b))
    kernel = kernel_of(layer)
    assert kernel.input_rank(4) == 3
    assert kernel.truncate(4).relative_error == pytest.approx(0, abs=1e-5)
    assert kernel.truncate(3).relative_error > 0.01


def test_macs_are_those_of_all_three_at_their_positions():
    kernel = kernel_of(conv(strides=2, padding="same"))
    assert kernel.macs(None) == 4 * 5 * 54 * 8
    assert kernel.macs(4) == 8 * 9 * 6 * 3 + 4 * 5 * (27 * 4 + 4 * 8)


def test_neither_data_nor_merging_make_a_difference():
    kernel = kernel_of(conv())
    assert not kernel.data_aware
    assert kernel.params(3, merge=False) == kernel.params(3)
    for one, other in zip(
        kernel.truncate(3).matrices, kernel.truncate(3, merge=False).matrices, strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("arguments", [{"kernel_size": 1}, {"groups": 2}])
def test_falls_back_to_channels(arguments):
    layer = conv(**arguments)
    assert factorizer_for(layer, "tucker2").convolution == "channel"
