import re
from collections import Counter

import keras
import numpy as np
import onnx
import pytest

from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.graph.network import Network


def dims(value):
    """Sizes and names of the dimensions of a graph's input or output."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_batch_is_called_batch(build, export):
    graph = onnx.load(export("onnx", build("functional_two_inputs_two_outputs"))).graph
    named = {value.name: dims(value) for value in (*graph.input, *graph.output)}
    assert named == {
        "wide": ["batch", 24],
        "deep": ["batch", 18],
        "kind": ["batch", 5],
        "amount": ["batch", 1],
    }


def test_other_free_sizes_are_named_after_their_tensor(export):
    model = keras.Sequential([keras.Input((None, 4), name="x"), keras.layers.Dense(3, name="y")])
    graph = onnx.load(export("onnx", model)).graph
    assert dims(graph.input[0]) == ["batch", "x_1", 4]
    assert dims(graph.output[0])[0] == "batch"
    assert dims(graph.output[0])[2] == 3


def test_a_fixed_batch_is_a_number(export):
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 4), name="x"), keras.layers.Dense(3, name="y")]
    )
    graph = onnx.load(export("onnx", model)).graph
    assert dims(graph.input[0]) == [2, 4]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("opset", range(13, 19))
def test_the_opset_is_the_one_asked_for(build, export, samples, opset):
    """With normalisation, exact GELU and softmax, whose operators changed between opsets."""
    model = build("residual")
    path = export("onnx", model, opset=opset)
    proto = onnx.load(path)
    assert [o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}] == [opset]
    onnx.checker.check_model(proto, full_check=True)
    inputs = samples(model, 3)
    actual = FORMATS["onnx"].load(path, "cpu")(inputs)["scores"]
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_is_exact_if_the_models_is(export, approximate):
    inputs = keras.Input((9,), name="x")
    model = keras.Model(inputs, keras.ops.gelu(inputs, approximate=approximate))
    path = export("onnx", model)
    batch = np.linspace(-6, 6, 9, dtype="float32")[np.newaxis]
    (actual,) = FORMATS["onnx"].load(path, "cpu")({"x": batch}).values()
    (expected,) = Network(model).runner(eager=True)({"x": batch}).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    # The approximation is off by up to 5e-4: this tells one from the other.
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("Erf" in operators) is not approximate
    assert "Erfc" not in operators


def test_recurrent_layers_convert_with_a_free_batch(lstm, export, samples):
    model = lstm()
    path = export("onnx", model)
    for count in (1, 4):
        inputs = samples(model, count)
        actual = FORMATS["onnx"].load(path, "cpu")(inputs)["scores"]
        np.testing.assert_allclose(
            actual, Network(model).runner(eager=True)(inputs)["scores"], rtol=1e-5, atol=1e-5
        )


def test_names_carry_no_counters_of_the_process(build, export):
    graph = onnx.load(export("onnx", build("residual"))).graph
    names = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    names |= {tensor.name for tensor in graph.initializer}
    assert not [name for name in names if re.search(r"__\d+", name)]
    outputs = [name for node in graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_an_operator_that_onnx_lacks_is_an_error(unconvertible, export):
    with pytest.raises(ConversionError, match="Erfinv"):
        export("onnx", unconvertible)


def test_weights_that_tf2onnx_does_not_see_are_stored_as_they_are_used(
    export, samples, randomize, monkeypatch
):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3),
            layers.Flatten(),
            layers.Dense(32, activation="gelu"),
            layers.Dense(4, name="scores"),
        ]
    )
    randomize(model, 0)
    plain = onnx.load(export("onnx", model)).graph
    monkeypatch.setattr("exporter.formats.onnx.converter.LARGE_BYTES", 256)
    path = export("onnx", model)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert Counter(n.op_type for n in graph.node) == Counter(n.op_type for n in plain.node)
    inputs = samples(model, 3)
    actual = FORMATS["onnx"].load(path, "cpu")(inputs)["scores"]
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_convolutions_convert(groups, export, samples, randomize):
    keras.utils.set_random_seed(0)
    conv = keras.layers.Conv2D(16, 3, groups=groups, padding="same", name="grouped")
    model = keras.Sequential([keras.Input((6, 6, 8), name="image"), conv])
    randomize(model, 0)
    path = export("onnx", model)
    inputs = samples(model, 3)
    actual = FORMATS["onnx"].load(path, "cpu")(inputs)["grouped"]
    np.testing.assert_allclose(
        actual, Network(model).runner(eager=True)(inputs)["grouped"], rtol=1e-5, atol=1e-5
    )
