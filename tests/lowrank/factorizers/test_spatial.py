import keras
import numpy as np
import pytest

from exporter.lowrank.factorizers import factorizer_for


def conv(sample_shape=(8, 9, 4), **arguments):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Conv2D(**{"filters": 6, "kernel_size": 3, "name": "layer", **arguments})
    layer(keras.Input(sample_shape))
    return layer


def cut(layer, rank, *, merge=True):
    factorizer = factorizer_for(layer, "spatial")
    (kernel,) = factorizer.kernels(layer)
    return kernel, factorizer.replace(layer, {"": kernel.truncate(rank, merge=merge)}).layers


def test_one_takes_the_vertical_part_and_the_other_the_horizontal_one():
    layer = conv(kernel_size=(3, 2), strides=(2, 3), padding="same", activation="relu")
    kernel, (head, scale, last) = cut(layer, 5, merge=False)
    assert (kernel.m, kernel.n) == (12, 12)
    assert [part.name for part in (head, scale, last)] == ["layer_u", "layer_s", "layer"]
    assert (head.kernel_size, head.strides, head.padding) == ((3, 1), (2, 1), "same")
    assert (scale.kernel_size, scale.strides) == ((1, 1), (1, 1))
    assert (last.kernel_size, last.strides, last.padding) == ((1, 2), (1, 3), "same")
    assert last.activation is keras.activations.relu


def test_dilation_is_parted_too():
    _, (head, last) = cut(conv(dilation_rate=(2, 3)), 2)
    assert (head.dilation_rate, last.dilation_rate) == ((2, 1), (1, 3))


def test_macs_are_those_of_both_at_their_positions():
    kernel, _ = cut(conv(strides=(1, 2), padding="same"), 2)
    assert kernel.macs(None) == 8 * 5 * 36 * 6
    assert kernel.macs(2) == 8 * 9 * 12 * 2 + 8 * 5 * 18 * 2
    assert kernel.macs(2, merge=False) == 8 * 9 * (12 * 2 + 4) + 8 * 5 * 18 * 2


def test_separable_filters_need_one_rank_for_each_pair_of_channels():
    layer = conv((8, 9, 1), filters=1, use_bias=False)
    outer = np.outer([1, 2, 1], [1, 0, -1])  # Sobel's.
    layer.kernel.assign(outer[:, :, None, None])
    kernel, _ = cut(layer, 1)
    assert kernel.truncate(1).relative_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("arguments", [{"kernel_size": 1}, {"kernel_size": (3, 1)}, {"groups": 2}])
def test_falls_back_to_channels(arguments):
    layer = conv(**arguments)
    assert factorizer_for(layer, "spatial").convolution == "channel"


def test_other_kinds_do_not_care():
    layer = keras.layers.Dense(4)
    layer(keras.Input((5,)))
    assert factorizer_for(layer, "spatial") is factorizer_for(layer)
