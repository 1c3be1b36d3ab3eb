"""The layer that is to blame for an artifact that predicts something else."""

from dataclasses import replace

import numpy as np
import pytest

from exporter.data import load_dataset
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, describe
from exporter.graph.fitting import fitted
from exporter.lowrank.engine import Compressed
from exporter.verification.departure import (
    LayerAgreement,
    compare_layers,
    find_departure,
    losses_by_layer,
)
from exporter.verification.verifier import Verifier


@pytest.fixture(scope="module")
def branched():
    """Two branches that are added: a fault in one leaves the other as it is."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    images = keras.Input((12, 12, 3), name="images")
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(images)
    left = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="left")(stem)
    right = layers.Conv2D(8, 3, padding="same", name="right")(stem)
    right = layers.ReLU(name="right_relu")(right)
    x = layers.Add(name="sum")([left, right])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(images, layers.Dense(5, name="scores")(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:  # Biases that are not zero.
        weight.assign(weight.numpy() + 0.1 * rng.normal(size=weight.shape))
    return Compressed.of(model)


@pytest.fixture(scope="module")
def verifier(branched, tmp_path_factory):
    rng = np.random.default_rng(1)
    arrays = {
        f"x_{part}": rng.normal(size=(96, 12, 12, 3)).astype("float32")
        for part in ("train", "test")
    }
    data = fitted(load_dataset(arrays), branched.network, "none")
    return Verifier(branched, data, folder=tmp_path_factory.mktemp("verifier"))


def exported(branched, verifier, name, variant, folder, *, layer=None):
    """Exports the model; with a layer, after its kernel was changed in a copy of the model."""
    fmt, path = FORMATS[name], folder / f"model{FORMATS[name].suffix}"
    compressed = branched.copy()
    if layer is not None:
        kernel = compressed.network.layers[layer].weights[0]
        kernel.assign(kernel.numpy()[..., ::-1, :])
    samples = [verifier._rounding_probe.inputs]
    options = ExportOptions(variant, calibration=samples, granularity="channel")
    fmt.export(compressed.network, path, options)
    return describe(fmt, variant, path, branched.network)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("variant", ["float32", "int8"])
@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_the_layer_with_a_fault_is_named(name, variant, branched, verifier, tmp_path):
    artifact = exported(branched, verifier, name, variant, tmp_path, layer="right")
    verdict = verifier.verify(artifact)
    assert not verdict.passed
    departure = verdict.departure
    assert (departure.layer, departure.agrees) == ("right", "stem")
    assert departure.snr_db < departure.least_db


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_a_fault_that_later_layers_hide_is_seen_where_it_is(name, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    given = keras.Input((16,))
    hidden = keras.layers.Dense(12, activation="relu", bias_initializer="ones", name="hidden")
    model = keras.Model(given, keras.layers.Dense(5, name="scores")(hidden(given)))
    kernel, bias = model.get_layer("scores").get_weights()
    kernel[0] *= 0.01  # Next to nothing depends on the first unit.
    model.get_layer("scores").set_weights([kernel, bias])
    rng, compressed = np.random.default_rng(0), Compressed.of(model)
    arrays = {f"x_{p}": rng.normal(size=(96, 16)).astype("float32") for p in ("train", "test")}
    data = fitted(load_dataset(arrays), compressed.network, "none")
    verifier = Verifier(compressed, data, folder=tmp_path)
    honest = exported(compressed, verifier, name, "int8", tmp_path)
    assert verifier.verify(honest).passed

    broken = compressed.copy()
    bias = broken.network.layers["hidden"].bias
    bias.assign(bias.numpy() * [-1, *11 * [1]])
    verdict = verifier.verify(exported(broken, verifier, name, "int8", tmp_path))
    assert verdict.quality.passed
    assert not verdict.passed
    assert verdict.departure.layer == "hidden"


def test_the_last_layer_may_be_to_blame(branched, verifier, tmp_path):
    artifact = exported(branched, verifier, "onnx", "float32", tmp_path, layer="scores")
    assert verifier.verify(artifact).departure.layer == "scores"


@pytest.mark.one_in(4)
@pytest.mark.parametrize("variant", ["float32", "int8"])
@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_all_layers_of_an_honest_artifact_agree(name, variant, branched, verifier, tmp_path):
    artifact = exported(branched, verifier, name, variant, tmp_path)
    verdict = verifier.verify(artifact)
    assert verdict.passed
    assert verdict.departure is None
    folder = tmp_path / "scratch"
    folder.mkdir()
    probe = verifier._rounding_probe
    layers = compare_layers(artifact, branched, probe, folder)
    assert [each.layer for each in layers if each.layer in {"stem", "left", "sum"}]
    assert find_departure(layers) is None
    assert set(verdict.losses) <= set(branched.network.layers)
    assert bool(verdict.losses) == (variant == "int8")


def test_a_runtime_that_shows_nothing_names_no_layer(branched, verifier, tmp_path):
    artifact = exported(branched, verifier, "ort", "float32", tmp_path, layer="right")
    verdict = verifier.verify(artifact)
    assert not verdict.passed
    assert verdict.departure is None
    assert replace(verdict, parity=None).passed is False


def test_the_noise_that_a_layer_adds_is_what_its_sources_have_not():
    def layer(path, sources, ratio, least=20.0):
        return LayerAgreement(path, sources, -10 * np.log10(ratio), least)

    layers = [
        layer("a", (), 0.001),
        layer("latent", ("a",), 1.0),  # Not found: it passes on what it got.
        layer("b", ("latent",), 0.004),
        layer("c", ("a",), 0.0005),  # Averages noise away.
        layer("sum", ("b", "c"), 0.005),
    ]
    assert losses_by_layer(layers) == pytest.approx({"b": 0.6, "a": 0.2, "sum": 0.2})
    assert find_departure(layers) is None
    assert find_departure([*layers[:2], layer("b", ("latent",), 1.0)]).layer == "latent"
