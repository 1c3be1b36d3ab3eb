import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from exporter.data.metrics import snr_db
from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.formats.base import describe
from exporter.graph.network import Network

TFLITE = FORMATS["tflite"]


def operators(path):
    """Codes of the builtin operators used, and names of the custom ones."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    custom = [code.customCode for code in model.operatorCodes if code.customCode]
    return [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes], custom


@pytest.mark.parametrize("zoo_name", ["residual", "conv_batchnorm_dropout"])
def test_only_builtin_operators_are_used(zoo_name, export_zoo):
    """Flex operators are custom ones, and a plain LiteRT cannot run them."""
    codes, custom = operators(export_zoo("tflite", zoo_name).path)
    assert not custom
    assert codes
    assert schema.BuiltinOperator.CUSTOM not in codes


def test_signature_has_the_names_of_the_model(export_zoo):
    path = export_zoo("tflite", "dict_inputs_outputs").path
    signatures = Interpreter(model_path=str(path)).get_signature_list()
    assert signatures.keys() == {"serving_default"}
    assert sorted(signatures["serving_default"]["inputs"]) == ["item", "query"]
    assert sorted(signatures["serving_default"]["outputs"]) == ["click", "rating"]


def test_batch_is_free(build, export):
    path = export("tflite", build("tiny"))
    details = Interpreter(model_path=str(path)).get_input_details()
    assert [list(detail["shape_signature"]) for detail in details] == [[-1, 8]]


@pytest.mark.parametrize("activation", ["elu", "gelu", "selu", "silu", "mish", "hard_sigmoid"])
def test_activations_run_in_every_backend(export, samples, activation):
    model = keras.Sequential(
        [keras.Input((6,), name="x"), keras.layers.Dense(5, activation=activation, name="y")]
    )
    path = export("tflite", model)
    inputs = samples(model, 4)
    expected = Network(model).runner(eager=True)(inputs)["y"]
    for backend in TFLITE.backends:
        actual = TFLITE.load(path, backend)(inputs)["y"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["int8", "int16x8"])
def test_sums_of_integers_are_right_in_every_backend(variant, export, samples):
    """LiteRT's reference kernels read signed integers as unsigned ones there."""
    inputs = keras.Input((10, 16), name="x")
    model = keras.Model(inputs, keras.ops.sum(inputs, axis=1), name="sums")
    batch = samples(model, 64)
    path = export("tflite", model, variant=variant, calibration=[batch])
    (expected,) = Network(model).runner(eager=True)(batch).values()
    for backend in TFLITE.backends:
        (actual,) = TFLITE.load(path, backend)(batch).values()
        assert snr_db(actual, expected) > 30


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "case",
    [({}, None, 1), ({}, 4, 4), ({"batch": 2}, None, 2), ({"unroll": True}, None, None)],
    ids=["free", "asked_for", "fixed", "unrolled"],
)
def test_recurrent_layers_have_a_fixed_batch_unless_unrolled(lstm, export, samples, case):
    built, asked, batch = case
    model = lstm(**built)
    path = export("tflite", model, batch=asked)
    described = describe(TFLITE, "float32", path, Network(model))
    assert described.inputs[0].shape == (batch, 5, 3)
    assert bool(described.notes) is (batch is not None and "batch" not in built)
    inputs = samples(model, 6)
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    for backend in TFLITE.backends:
        actual = TFLITE.load(path, backend)(inputs)["scores"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_that_is_asked_for_is_that_of_the_signature(build, export, samples):
    model = build("tiny")
    path = export("tflite", model, batch=3)
    assert TFLITE.fixed_batch(path) == 3
    inputs = samples(model, 4)
    (expected,) = Network(model).runner(eager=True)(inputs).values()
    (actual,) = TFLITE.load(path, "xnnpack")(inputs).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_an_operator_that_litert_lacks_is_an_error_and_writes_nothing(
    unconvertible, export, tmp_path
):
    with pytest.raises(ConversionError, match="Only builtin operators") as caught:
        export("tflite", unconvertible)
    assert "recurrent" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_mixed_precision_is_stored_and_computed_in_float32(export_zoo):
    """LiteRT has no half precision kernels on the processor."""
    path = export_zoo("tflite", "mixed_float16").path
    details = Interpreter(model_path=str(path)).get_tensor_details()
    assert np.float16 not in {detail["dtype"] for detail in details}
