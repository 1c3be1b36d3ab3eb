"""What is simulated of integers is what the runtimes compute."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

from exporter.data.metrics import snr_db
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration
from exporter.quantization.scheme import KernelFormat
from exporter.quantization.simulation import Simulation, kernel_format, round_weights

VARIANTS = [
    (name, variant.name)
    for name in ("tflite", "onnx")
    for variant in FORMATS[name].variants
    if variant.scheme
]


def scheme(name, variant):
    return FORMATS[name].variant(variant).scheme


def dense():
    return [
        keras.Input((64,), name="x"),
        layers.Dense(128, activation="relu"),
        layers.Dense(20),
        layers.Dense(96, activation="gelu"),
        layers.Dense(80, name="y"),
    ]


def convolutional():
    return [
        keras.Input((10, 10, 8), name="x"),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Conv2D(16, 1),
        layers.Conv2D(48, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(40, name="y"),
    ]


def test_every_variant_of_integers_has_a_scheme_of_its_own():
    assert VARIANTS == [
        ("tflite", "dynamic"),
        ("tflite", "int8"),
        ("tflite", "int16x8"),
        ("tflite", "int4"),
        ("tflite", "mixed"),
        ("onnx", "dynamic"),
        ("onnx", "int8"),
    ]
    assert len({scheme(*each) for each in VARIANTS}) == len(VARIANTS)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("build", [dense, convolutional])
@pytest.mark.parametrize(
    "kind",
    [kind for kind in VARIANTS if kind[1] != "mixed"],  # Whose bits are those of rounded kernels.
    ids="-".join,
)
def test_the_simulated_noise_is_that_of_the_runtime(kind, build, randomize, samples, tmp_path):
    granularity = "tensor" if build is dense else "channel"
    keras.utils.set_random_seed(0)
    model = keras.Sequential(build())
    randomize(model, 0)
    inputs = {key: np.maximum(array, -0.5) for key, array in samples(model, 128).items()}
    calibration = Calibration(inputs, 64)
    (name, variant), path = kind, tmp_path / "artifact"
    fmt = FORMATS[name]
    observed = list(calibration.batches()) if fmt.variant(variant).calibrated else ()
    options = ExportOptions(variant=variant, granularity=granularity, calibration=observed)
    network = Network(model)
    fmt.export(network, path, options)
    run, expected = fmt.load(path, fmt.backends[0]), network.runner(eager=True)(inputs)["y"]
    actual = np.concatenate([run(batch)["y"] for batch in calibration.batches()])
    simulation = Simulation(network, calibration)
    rounded = replace(scheme(*kind), granularity=granularity)
    assert simulation.snr(network, rounded) == pytest.approx(snr_db(actual, expected), abs=1.0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kernels_have_as_many_values_as_their_bits_allow(bits, granularity, symmetric):
    kernel = np.random.default_rng(0).uniform(-0.2, 1.0, (4000, 3)) * [1.0, 2.0, 0.0]
    rounded = round_weights(kernel, (-1,), KernelFormat(granularity, bits, symmetric))
    counts = [len(np.unique(column)) for column in rounded.T]
    # The range of a symmetric kernel is from -1 to 1, of which the weights fill three fifths.
    most = round(0.6 * (2**bits - 1)) if symmetric else 2**bits
    assert counts[1] == pytest.approx(most, abs=2)
    assert counts[0] == pytest.approx(most if granularity == "channel" else most / 2, abs=2)
    assert counts[2] == 1
    assert rounded.min() <= 0.0
    np.testing.assert_allclose(rounded, kernel, atol=2.4 / (2**bits - 1))


@pytest.mark.parametrize(
    ("layer", "bits"),
    [
        (layers.Dense(3), 4),
        (layers.Conv2D(3, 2), 4),
        (layers.Conv3D(3, 2), 8),
        (layers.DepthwiseConv2D(2), 8),
    ],
)
def test_only_some_kernels_have_fewer_bits(layer, bits):
    assert kernel_format(layer, scheme("tflite", "int4")).bits == bits
