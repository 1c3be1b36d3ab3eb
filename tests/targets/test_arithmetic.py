import keras
import pytest

from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.flatbuffer import macs_by_operator
from exporter.graph.network import Network
from exporter.options.groups import TARGET_NAMES
from exporter.targets import TARGETS
from exporter.targets.base import Subject


def convolutional():
    layers = keras.layers
    return Network(
        keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
                layers.DepthwiseConv2D(3),
                layers.Conv2DTranspose(4, 2, strides=2),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )
    )


def subject(network, fmt, folder):
    path = folder / f"model{fmt.suffix}"
    fmt.export(network, path, ExportOptions())
    return Subject(path, network)


def test_names_are_those_of_the_option():
    assert tuple(TARGETS) == TARGET_NAMES
    assert all(fmt.targets <= set(TARGETS) for fmt in FORMATS.values())


def test_a_flatbuffer_has_the_macs_of_its_model(tmp_path):
    network = convolutional()
    content = subject(network, FORMATS["tflite"], tmp_path).path.read_bytes()
    macs = macs_by_operator(content)
    assert set(macs) == {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"}
    assert macs["CONV_2D"] == 6 * 6 * 8 * 3 * 3 * 3
    assert sum(macs.values()) == network.macs


@pytest.mark.parametrize("name", ["tflite", "c"])
def test_micro_has_macs_and_the_arena(installed, name, tmp_path):
    fmt, network, target = installed(name), convolutional(), TARGETS["micro"]
    installed("c")
    (cost,) = target.measure(fmt, [subject(network, fmt, tmp_path)], {})
    assert cost.value == network.macs
    # The largest activation and what it is made of take part of it.
    assert cost.figures["arena_bytes"] > 4 * (12 * 12 * 3 + 6 * 6 * 8)
    assert "arena" in target.text(cost)


def test_formats_without_a_flatbuffer_say_so(tmp_path):
    with pytest.raises(ConversionError, match="has no flatbuffer"):
        FORMATS["onnx"].flatbuffer(tmp_path / "model.onnx")


def test_macs_are_those_of_the_network(tmp_path):
    network = convolutional()
    (cost,) = TARGETS["macs"].measure(FORMATS["onnx"], [Subject(tmp_path, network)], {})
    assert cost.value == network.macs
