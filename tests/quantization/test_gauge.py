"""Factors of the same product that lose less in integers."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration
from exporter.lowrank.engine import Engine
from exporter.lowrank.ranks.policy import FixedRank
from exporter.options.groups import Cut
from exporter.quantization.gauge import regauge
from exporter.quantization.pair import AS_CUT
from exporter.quantization.simulation import Simulation

DYNAMIC, STATIC = (FORMATS["tflite"].variant(name).scheme for name in ("dynamic", "int8"))
SCHEMES = tuple(
    variant.scheme
    for name in ("tflite", "onnx")
    for variant in FORMATS[name].variants
    if variant.scheme
)

once = functools.partial(regauge, attempts=1)


def cut(model, rank, **options):
    engine = Engine(Network(model), cut=Cut(method="svd", **options))
    return engine.factorize(engine.plan(FixedRank(rank)))


def drawn(model, samples, count=96):
    return Calibration(samples(model, count), 32)


def mlp(sizes, seed, activation="relu"):
    keras.utils.set_random_seed(seed)
    inputs, *hidden, outputs = sizes
    return keras.Sequential(
        [
            keras.Input((inputs,), name="features"),
            *(
                layers.Dense(n, activation=activation, name=f"h{n}_{i}")
                for i, n in enumerate(hidden)
            ),
            layers.Dense(outputs, name="scores"),
        ]
    )


def convolutional():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((7, 7, 6), name="image"),
            layers.Conv2D(12, 3, strides=2, activation="relu", name="conv"),
            layers.Conv2D(10, 1, name="pointwise"),
            layers.Flatten(name="flatten"),
            layers.Dense(12, activation="softmax", name="kinds"),
        ]
    )


def padded():
    """What a convolution pads with zeros, a latent without bias, is zero in any coordinates."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((7, 7, 6), name="image"),
            layers.Conv2D(12, 3, padding="same", strides=2, activation="relu", name="conv"),
            layers.Conv2D(10, (5, 3), padding="same", name="again"),
        ]
    )


def pooled():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((9, 9, 6), name="image"),
            layers.Conv2D(12, 3, name="conv"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(40, name="dense"),
        ]
    )


def tokens():
    keras.utils.set_random_seed(0)
    sequence = keras.Input((5, 24), name="sequence")
    heads = layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="de", name="heads")(
        sequence
    )
    merged = layers.EinsumDense("abde,dec->abc", (None, 16), activation="gelu", name="merge")(heads)
    return keras.Model(sequence, layers.Dense(8, name="scores")(merged))


def valid():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((7, 7, 6), name="image"),
            layers.Conv2D(12, 3, activation="relu", name="conv"),
            layers.Conv2D(10, (3, 2), name="again"),
        ]
    )


def far_from_zero(model, samples, count, seed=0, by=10):
    return {name: array + by for name, array in samples(model, count, seed=seed).items()}


def weights_of(model):
    return [weight.numpy() for weight in model.weights]


def assert_same_function(model, other, inputs, predict):
    expected, actual = predict(model, inputs), predict(other, inputs)
    for name, values in expected.items():
        atol = 1e-4 * np.abs(values).max()
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=atol)


@settings(max_examples=3)
@given(
    sizes=st.lists(st.integers(9, 40), min_size=2, max_size=4),
    rank=st.integers(1, 4),
    scheme=st.sampled_from(SCHEMES),
)
def test_any_network_computes_the_same_and_loses_no_more(sizes, rank, scheme, samples, predict):
    compressed = cut(mlp(sizes, 0), rank)
    calibration = drawn(compressed.model, samples)
    before = weights_of(compressed.model)

    gauged = once(compressed, calibration, scheme)

    report = gauged.report
    simulation = Simulation(compressed.network, calibration)
    assert report.snr_after >= report.snr_before
    assert simulation.snr(gauged.compressed.network, scheme) == pytest.approx(
        report.snr_after, abs=1e-3
    )
    assert [layer.name for layer in report.layers] == list(compressed.factors)
    for layer in report.layers:
        assert layer.snr_after >= layer.snr_before
        assert (layer.gauge == AS_CUT) == (layer.snr_after == layer.snr_before)
    fresh = samples(compressed.model, 50, seed=1)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)
    for old, new in zip(before, weights_of(compressed.model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_best_of_all_attempts_is_kept_and_they_are_repeatable(samples):
    compressed = cut(mlp((30, 20), 0), 3)
    calibration = drawn(compressed.model, samples)
    gauged, again = (regauge(compressed, calibration, STATIC, attempts=2) for _ in range(2))
    attempts = [once(compressed, calibration, STATIC, seed=seed).report for seed in range(2)]
    assert gauged.report == max(attempts, key=lambda report: report.snr_after)
    assert gauged.report == again.report
    for first, second in zip(
        weights_of(gauged.compressed.model), weights_of(again.compressed.model), strict=True
    ):
        np.testing.assert_array_equal(first, second)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC])
@pytest.mark.parametrize("network", [convolutional, tokens])
def test_convolutions_and_einsums_have_a_gauge(network, scheme, samples, predict):
    compressed = cut(network(), 3)
    gauged = once(compressed, drawn(compressed.model, samples), scheme)
    assert [layer.name for layer in gauged.report.layers] == list(compressed.factors)
    assert gauged.report.snr_after >= gauged.report.snr_before
    fresh = samples(compressed.model, 20, seed=1)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("convolution", ["spatial", "tucker2"])
def test_every_latent_of_a_convolution_has_a_gauge(convolution, samples, predict):
    compressed = cut(padded(), 4, convolution=convolution)
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    names = {
        "spatial": ["conv", "again"],
        "tucker2": ["conv_u", "conv_s", "again_u", "again_s"],
    }
    assert [layer.name for layer in gauged.report.layers] == names[convolution]
    assert any(layer.gauge != AS_CUT for layer in gauged.report.layers)
    assert gauged.report.snr_after >= gauged.report.snr_before
    fresh = samples(compressed.model, 20, seed=1)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)


def test_a_row_that_is_large_for_a_channel_that_is_small_is_equalized(samples, predict):
    compressed = cut(pooled(), 3)
    first, _ = compressed.factors["dense"].weights
    quiet = np.ones(12)
    quiet[3] = 1e-2
    for weight in compressed.model.get_layer("conv").weights:
        weight.assign(weight.numpy() * quiet)
    first.assign(first.numpy() / np.resize(quiet, first.shape[0])[:, None])
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    assert "equalized" in gauged.report.layers[1].gauge
    assert gauged.report.snr_after > gauged.report.snr_before + 10
    fresh = samples(compressed.model, 20, seed=1)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)


def test_layers_that_are_called_on_several_sizes_have_a_gauge(samples, predict):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 6), name="image")
    shared = layers.Conv2D(12, 3, activation="relu", name="shared")
    pool = layers.GlobalAveragePooling2D()
    scores = layers.Add(name="scores")(
        [pool(shared(image)), pool(shared(layers.MaxPooling2D()(image)))]
    )
    compressed = cut(keras.Model(image, scores), 3)
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    assert gauged.report.layers[0].snr_after > gauged.report.layers[0].snr_before
    fresh = samples(compressed.model, 20, seed=1)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)


def test_groups_stay_as_they_are(samples):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 8), name="image"), layers.Conv2D(12, 3, groups=2, name="conv")]
    )
    compressed = cut(model, 2)
    assert compressed.factors
    assert once(compressed, drawn(model, samples), STATIC).report.layers == ()


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "zoo_name",
    ["functional_two_inputs_two_outputs", "residual", "nested_functional", "mixed_float16"],
)
def test_graphs_of_many_kinds_keep_their_function(zoo_model, samples, predict):
    compressed = cut(zoo_model, 3)
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    assert gauged.report.snr_after >= gauged.report.snr_before
    inputs = samples(compressed.model, 20, seed=1)
    expected = predict(compressed.model, inputs)
    tolerance = 1e-2 if zoo_model.name == "mixed_float16" else 1e-4
    for name, values in predict(gauged.compressed.model, inputs).items():
        atol = tolerance * np.abs(expected[name]).max()
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=atol)


def test_the_factors_are_weights_of_the_new_model_which_saves_and_loads(samples, predict, tmp_path):
    compressed = cut(mlp((40, 60, 30), 0), 4)
    gauged = once(compressed, drawn(compressed.model, samples), STATIC).compressed
    own = {id(weight) for weight in gauged.model.weights}
    assert all(id(w) in own for factors in gauged.factors.values() for w in factors.weights)
    assert gauged.factors.keys() == compressed.factors.keys()
    gauged.model.save(tmp_path / "gauged.keras")
    loaded = keras.saving.load_model(tmp_path / "gauged.keras")
    inputs = samples(gauged.model, 10)
    np.testing.assert_array_equal(
        predict(loaded, inputs)["scores"], predict(gauged.model, inputs)["scores"]
    )


def test_an_uneven_latent_gains_much(samples):
    """One latent is a hundred times as large as the others: in 8 bits they are lost."""
    compressed = cut(mlp((40, 60, 30), 0, "linear"), 4)
    first, second = compressed.factors["h60_0"].weights
    scale = np.array([100.0, 1.0, 1.0, 1.0])
    first.assign(first.numpy() * scale)
    second.assign(second.numpy() / scale[:, None])
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    assert gauged.report.layers[0].gauge != AS_CUT
    assert gauged.report.snr_after > gauged.report.snr_before + 10


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("compressed", "scheme", "name"),
    [
        (lambda: cut(mlp((60, 80, 40), 0), 20), DYNAMIC, "h80_0"),
        (lambda: cut(mlp((60, 80, 40), 0), 3), STATIC, "h80_0"),
        (lambda: cut(tokens(), 3), STATIC, "heads"),
        (lambda: cut(padded(), 3), STATIC, "conv"),
        (lambda: cut(valid(), 3, convolution="spatial"), STATIC, "conv"),
        (lambda: cut(valid(), 3, convolution="tucker2"), STATIC, "conv_s"),
    ],
)
def test_biases_take_off_a_large_mean_of_a_latent(compressed, scheme, name, samples, predict):
    compressed = compressed()
    # At 10 the gain is about the half decibel that a bias has to be worth.
    by = 30 if name == "heads" else 10
    calibration = Calibration(far_from_zero(compressed.model, samples, 96, by=by), 32)
    gauged = once(compressed, calibration, scheme)
    layer = next(layer for layer in gauged.report.layers if layer.name == name)
    assert "centred" in layer.gauge
    assert layer.snr_after > layer.snr_before + 1
    simulation = Simulation(compressed.network, calibration)
    actual = simulation.snr(gauged.compressed.network, scheme)
    assert actual == pytest.approx(gauged.report.snr_after, abs=1e-3)
    assert actual > gauged.report.snr_before
    fresh = far_from_zero(compressed.model, samples, 20, seed=1, by=by)
    assert_same_function(compressed.model, gauged.compressed.model, fresh, predict)


def test_zeros_that_pad_a_latent_keep_it_from_being_centred(samples):
    compressed = cut(padded(), 3, convolution="spatial")
    calibration = Calibration(far_from_zero(compressed.model, samples, 96), 32)
    gauged = once(compressed, calibration, STATIC)
    assert [layer.name for layer in gauged.report.layers] == ["conv", "again"]
    assert not any("centred" in layer.gauge for layer in gauged.report.layers)


def test_layers_without_integers_stay_as_they_are(samples):
    compressed = cut(mlp((16, 12, 9), 0), 3)
    calibration = Calibration(far_from_zero(compressed.model, samples, 96), 32)
    gauged = once(compressed, calibration, DYNAMIC)
    assert gauged.report.snr_before == np.inf
    assert {layer.gauge for layer in gauged.report.layers} == {AS_CUT}
    assert gauged.compressed.network.params == compressed.network.params


def test_three_factors_stay_as_they_are(samples):
    compressed = cut(mlp((30, 40, 20), 0), 3, merge=False)
    gauged = once(compressed, drawn(compressed.model, samples), STATIC)
    assert gauged.report.layers == ()
    assert gauged.report.snr_after == gauged.report.snr_before
