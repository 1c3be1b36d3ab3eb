"""Rounding with compensation: its error, and that converters store what it returns."""

import itertools
from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from exporter.data.metrics import snr_db
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration
from exporter.quantization.compensation import (
    ENOUGH_DB,
    MOST_LOST_DB,
    Compensator,
    compensated,
)
from exporter.quantization.grid import Grid
from exporter.quantization.scheme import KernelFormat
from exporter.quantization.simulation import Simulation, kernel_format, linear_layers, round_weights

VARIANTS = [
    (name, variant.name)
    for name in ("tflite", "onnx")
    for variant in FORMATS[name].variants
    if variant.scheme
]
KERNELS = st.builds(
    KernelFormat,
    st.sampled_from(["tensor", "channel"]),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.booleans(),
)


def correlated(rows, size, seed):
    """Inputs of which some hardly differ from others, and one is always zero."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, size))
    inputs += 0.3 * rng.normal(size=(rows, size))
    inputs[:, 0] = 0
    return inputs


def error(inputs, change):
    return float(np.sum((inputs @ change) ** 2))


@given(st.integers(2, 40), st.integers(1, 6), KERNELS, st.integers(0, 2**16))
def test_what_is_stored_is_read_back_on_its_own_steps(m, n, kernel, seed):
    inputs = correlated(50, m, seed)
    matrix = np.random.default_rng(seed).normal(size=(m, n))
    stored, read = compensated(matrix, inputs.T @ inputs / 50, kernel)
    again = round_weights(stored.astype(np.float32).astype(np.float64), (-1,), kernel)
    np.testing.assert_allclose(again, read, atol=1e-5 * abs(matrix).max())
    values = len(np.unique(np.round(read / max(abs(read).max(), 1e-9), 6)))
    assert values <= 2**kernel.bits * (n if kernel.granularity == "channel" else 1)


@given(KERNELS, st.integers(0, 2**16))
def test_products_lose_less_than_with_the_nearest_steps(kernel, seed):
    inputs = correlated(400, 48, seed)
    matrix = np.random.default_rng(seed).normal(size=(48, 8))
    _, read = compensated(matrix, inputs.T @ inputs / 400, kernel)
    nearest = round_weights(matrix, (-1,), kernel)
    assert error(inputs, read - matrix) < 0.7 * error(inputs, nearest - matrix)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_makes_up_for_those_before_it(granularity, bits):
    inputs, kernel = correlated(2000, 300, 0), KernelFormat(granularity, bits)
    matrix = np.random.default_rng(1).normal(size=(300, 5))
    _, read = compensated(matrix, inputs.T @ inputs / 2000, kernel)
    nearest = round_weights(matrix, (-1,), kernel)
    assert error(inputs, read - matrix) < 0.1 * error(inputs, nearest - matrix)


def test_zeros_and_constant_inputs_are_no_fault():
    matrix = np.zeros((6, 3))
    matrix[:, 0] = np.linspace(-1, 1, 6)
    for kernel in (KernelFormat("tensor"), KernelFormat("channel", 4, symmetric=False)):
        stored, read = compensated(matrix, np.zeros((6, 6)), kernel)
        np.testing.assert_allclose(stored, read, atol=1e-12)
        np.testing.assert_allclose(read, matrix, atol=1 / 2 ** (kernel.bits - 1))


def network_of_many_kinds():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12, 12, 8), name="x")
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="plain")(x)
    x = layers.Conv2D(24, 3, strides=2, dilation_rate=1, name="strided")(x)
    x = layers.Conv2D(24, 3, dilation_rate=2, padding="same", use_bias=False, name="dilated")(x)
    x = layers.Reshape((25, 24), name="sequence")(x)
    x = layers.Conv1D(32, 3, padding="causal", activation="relu", name="causal")(x)
    x = layers.EinsumDense("abc,cd->abd", (25, 48), bias_axes="d", name="einsum")(x)
    x = layers.Dense(24, activation="relu", name="on_sequence")(x)
    x = layers.Flatten(name="flat")(x)
    return Network(keras.Model(inputs, layers.Dense(10, name="y")(x)))


def smooth(count, seed=0):
    """Images whose neighbours are alike, as in data that people have."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 3, 3, 8)).repeat(4, axis=1).repeat(4, axis=2)
    return (images + 0.1 * rng.normal(size=images.shape)).astype("float32")


def columns(array, axis, symmetric):
    """The integers of each channel in their order: from zero, or from the least one."""
    matrix = np.moveaxis(array.astype(int), axis, -1).reshape(-1, array.shape[axis])
    zero = 128 * (array.dtype == np.uint8) if symmetric else matrix.min(axis=0)
    return np.sort(matrix - zero, axis=0)


def integers(layer, scheme):
    """The integers of a kernel that lies on steps."""
    kernel, array = kernel_format(layer, scheme), layer.kernel.numpy().astype(np.float64)
    others = tuple(range(array.ndim - 1)) if kernel.granularity == "channel" else None
    ends = (end(array, axis=others, keepdims=True) for end in (np.min, np.max))
    return np.rint(array / Grid.between(*ends, kernel).step)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", VARIANTS, ids="-".join)
def test_converters_store_the_rounded_kernels(kind, granularity, tmp_path, monkeypatch):
    # Random kernels hardly gain in 8 bits, for most noise is that of activations.
    ratios = itertools.count()
    monkeypatch.setattr(Simulation, "snr", lambda *_: next(ratios))
    (name, variant), network = kind, network_of_many_kinds()
    fmt, calibration = FORMATS[name], Calibration({"x": smooth(64)}, 16)
    scheme = replace(fmt.variant(variant).scheme, granularity=granularity)
    rounded, report = Compensator(network, calibration).round(scheme)
    assert report.layers == 7
    path = tmp_path / f"model{fmt.suffix}"
    options = ExportOptions(
        variant=variant, granularity=granularity, calibration=list(calibration.batches())
    )
    fmt.export(rounded, path, options)
    found = []
    fmt.rewrite_kernels(path, tmp_path / "other", lambda _, array: found.append(array) or array)
    for layer in linear_layers(rounded):
        symmetric = kernel_format(layer, scheme).symmetric
        expected = columns(integers(layer, scheme), -1, symmetric)
        # Integers of 4 bits are given flat.
        shaped = [
            a.reshape(expected.shape[::-1]) if a.shape == (expected.size,) else a for a in found
        ]
        stored = [columns(array, axis, symmetric) for array in shaped for axis in (0, -1)]
        off = [np.sum(each != expected) for each in stored if each.shape == expected.shape]
        # Unsigned integers have ends between two steps, which may be rounded to either.
        most = 0 if scheme.signed or granularity == "tensor" else expected.shape[1]
        assert min(off) <= most, layer.name


def test_an_artifact_loses_as_much_less_as_predicted(tmp_path):
    fmt, network = FORMATS["tflite"], network_of_many_kinds()
    calibration = Calibration({"x": smooth(400)}, 100)
    scheme = replace(fmt.variant("int4").scheme, granularity="channel")
    rounded, report = Compensator(network, calibration).round(scheme)
    assert report.snr_after > report.snr_before + 3
    fresh = {"x": smooth(100, seed=1)}
    expected = network.runner(eager=True)(fresh)["y"]
    ratios = []
    for number, each in enumerate((network, rounded)):
        path = tmp_path / str(number)
        fmt.export(each, path, ExportOptions(variant="int4", granularity="channel"))
        ratios.append(snr_db(fmt.load(path, fmt.backends[0])(fresh)["y"], expected))
    assert ratios == pytest.approx([report.snr_before, report.snr_after], abs=1.5)


def test_layers_that_add_little_noise_have_few_bits(tmp_path):
    network = network_of_many_kinds()
    # What later layers hardly take of it hardly counts.
    strided = network.layers["strided"]
    strided.set_weights([1e-3 * weight for weight in strided.get_weights()])
    fmt, calibration = FORMATS["tflite"], Calibration({"x": smooth(200)}, 50)
    scheme = replace(fmt.variant("mixed").scheme, granularity="channel")
    rounded, report = Compensator(network, calibration).round(scheme)
    fewer, all_in_8 = (
        Compensator(network, calibration).round(replace(scheme, mixed=False, weight_bits=bits))[1]
        for bits in (4, 8)
    )
    assert 0 < len(report.narrow) < report.layers
    assert fewer.snr_after < report.snr_after < all_in_8.snr_after
    assert report.snr_after > min(ENOUGH_DB, all_in_8.snr_after - MOST_LOST_DB) - 1
    sizes = {}
    for variant in ("int4", "mixed", "dynamic"):
        path = tmp_path / variant
        fmt.export(rounded, path, ExportOptions(variant=variant, granularity="channel"))
        sizes[variant] = fmt.size(path)
    saved = sum(rounded.layers[name].kernel.numpy().size for name in report.narrow) / 2
    assert sizes["dynamic"] - sizes["mixed"] == pytest.approx(saved, abs=400)
    assert sizes["int4"] < sizes["mixed"]


def test_the_network_is_left_as_it_is_where_nearest_steps_lose_less():
    network = Network(keras.Sequential([keras.Input((64,), name="x"), layers.Dense(64, name="y")]))
    weights = network.model.get_weights()
    inputs = correlated(400, 64, 0).astype("float32")
    # Inputs that are the same in the samples before are opposites in the last quarter.
    inputs[:300, 32:] = inputs[:300, :32]
    inputs[300:, 32:] = -inputs[300:, :32]
    scheme = FORMATS["tflite"].variant("int4").scheme
    kept, report = Compensator(network, Calibration({"x": inputs}, 100)).round(scheme)
    assert kept is network
    assert report.layers == 0
    assert report.snr_after == report.snr_before
    for before, after in zip(weights, network.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
