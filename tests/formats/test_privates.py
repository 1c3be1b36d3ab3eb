"""What formats use of other packages beyond their documentation, and whether it is still so.

Such parts of a package are used in one file each. A canary, which fails when an upgrade has changed
them, says in one sentence what broke and where to look.
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tf2onnx
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import exporter
from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions
from exporter.formats.flatbuffers import write, write_bytes, write_offsets, write_table
from exporter.formats.onnx.converter import build as build_onnx
from exporter.formats.onnx.ort import canonical
from exporter.formats.onnx.quantization import as_variant
from exporter.formats.tflite.flatbuffer import convert
from exporter.formats.tflite.micro import adapted, measure_arena
from exporter.formats.tflite.packing import name_of, pack, type_name, unpack
from exporter.formats.tflite.quantization import quantize
from exporter.formats.tflite.runner import REFERENCE, LiteRTRunner, observable, sums_integers
from exporter.graph.network import Network

PACKAGE = Path(exporter.__file__).parent

GUEST = "targets/arm64/guest.py"
"""Runs in an emulator that has nothing else of the package; the tests of ARM64 are its canary."""

ONLY_IN = {
    "_get_ops_details": "formats/tflite/runner.py",
    "_tab": "formats/onnx/ort.py",
    "ai_edge_litert.interpreter": "formats/tflite/runner.py",
    "ai_edge_litert.schema_py_generated": "formats/tflite/packing.py",
    "ai_edge_litert.tools": "formats/tflite/packing.py",
    "captures": "formats/onnx/converter.py",
    "disabled_optimizers": "formats/onnx/ort.py",
    "flatbuffers": "formats/flatbuffers.py",
    "litert_quantizer": "formats/tflite/quantization.py",
    "onnxruntime.quantization": "formats/onnx/quantization.py",
    "onnxruntime.transformers": "formats/onnx/quantization.py",
    "ort_flatbuffers_py": "formats/onnx/ort.py",
    "Prep": "formats/flatbuffers.py",
    "tensorflow.core": "formats/saved_model.py",
    "tf2onnx": "formats/onnx/converter.py",
    "TF2ONNX_CATCH_ERRORS": "formats/onnx/converter.py",
    "tflite_micro.runtime": "formats/tflite/micro.py",
}
"""Modules, attributes, options and variables by name, and the one file that may use them."""


@pytest.fixture(scope="module")
def used():
    """What each file of the package names."""
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")} - {GUEST}
    return {file: set(names_in((PACKAGE / file).read_text())) for file in files}


def names_in(source: str) -> Iterator[str]:
    """Yields the modules, attributes, options and variables that a source names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Attribute(attr=attribute):
                yield from (attribute, ast.unparse(node))
            case ast.keyword(arg=str(argument)):
                yield argument
            case ast.Constant(value=str(text)) if text.isupper():  # A variable, perhaps.
                yield text


@pytest.mark.parametrize(("private", "file"), ONLY_IN.items())
def test_what_is_not_documented_is_used_in_one_file(private, file, used):
    users = {
        user
        for user, names in used.items()
        if any(f"{name}.".startswith(f"{private}.") for name in names)
    }
    assert users == {file}, f"{private} may change with any release: call what {file} makes of it"


@contextmanager
def canary(package, what, file):
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(
            f"{package} {version(package)} no longer {what}: look at exporter/formats/{file}"
        ) from error


@pytest.fixture(scope="module")
def model():
    """Has what converters are helped with: exact GELU, groups, and constants of a Normalization."""
    keras.utils.set_random_seed(0)
    norm = keras.layers.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).normal(3, 2, (64, 6, 6, 8)))
    conv = keras.layers.Conv2D(16, 3, name="conv")
    grouped = keras.layers.Conv2D(8, 3, groups=2, activation="gelu", name="grouped")
    dense = keras.layers.Dense(64, activation="elu", bias_initializer="ones", name="dense")
    layers = [norm, conv, grouped, keras.layers.Flatten(name="flatten"), dense]
    return keras.Sequential([keras.Input((6, 6, 8), name="x"), *layers], name="canary")


@pytest.fixture(scope="module")
def content(model):
    return convert(Network(model), ExportOptions())


@pytest.fixture(scope="module")
def batch():
    return {"x": np.random.default_rng(1).normal(3, 2, (8, 6, 6, 8)).astype(np.float32)}


def test_flatbuffers_writes_what_it_is_told_to():
    def root(builder):
        inner = write_table(builder, {0: write_bytes(builder, b"abc")}, {1: 7})
        return write_table(builder, {0: write_offsets(builder, [inner])})

    golden = (
        "180000005445535400000000000000000000060008000400060000000400000001000000"
        "0c00000008000c00080007000800000000000007040000000300000061626300"
    )
    with canary("flatbuffers", "writes tables field by field", "flatbuffers.py"):
        assert write(root, b"TEST").hex().rstrip("0") == golden.rstrip("0")


def test_litert_reads_and_packs_by_its_generated_code(model, content):
    with canary("ai-edge-litert", "has the classes of the schema", "tflite/packing.py"):
        packed = pack(unpack(content))
        read = unpack(packed)
        (graph,) = read.subgraphs
        names = [name_of(read, o) for o in graph.operators]
        assert {"CONV_2D", "FULLY_CONNECTED"} <= set(names)
        assert type_name(graph.tensors[graph.inputs[0]]) == "float32"
        kernel = model.get_layer("dense").kernel.numpy().T.tobytes()
        assert packed.index(kernel) % 16 == 0


def test_litert_keeps_activations_and_names_what_it_lacks(model, content, batch):
    hidden = keras.Model(model.inputs, model.get_layer("flatten").output)
    with canary("ai-edge-litert", "keeps every activation", "tflite/runner.py"):
        interpreter = observable(content)
        interpreter.get_signature_runner()(**batch)
        graph = unpack(content).subgraphs[0]
        found = [
            interpreter.get_tensor(index)
            for operator in graph.operators
            for index in operator.outputs
        ]
        expected = hidden(batch).numpy()
        assert any(
            array.shape == expected.shape and np.allclose(array, expected, atol=1e-4)
            for array in found
        )
    with canary("ai-edge-litert", "says which operator it lacks", "tflite/runner.py"):
        LiteRTRunner(content, REFERENCE)(batch)  # Has no ELU.


def test_litert_lists_the_operators_of_which_one_is_wrong():
    inputs = keras.Input((8,), name="x")
    sums = Network(keras.Model(inputs, keras.ops.sum(inputs, axis=-1)))
    batch = {"x": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)}
    options = ExportOptions(variant="int8", calibration=[batch])
    integers = quantize(convert(sums, ExportOptions()), options)
    with canary("ai-edge-litert", "lists the operators", "tflite/runner.py"):
        assert sums_integers(observable(integers))
        assert not sums_integers(observable(convert(sums, ExportOptions())))
    with canary("ai-edge-litert", "sums integers wrongly in reference kernels", "tflite/runner.py"):
        interpreter = Interpreter(
            model_content=integers, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        (actual,) = interpreter.get_signature_runner()(**batch).values()
        assert not np.allclose(actual, batch["x"].sum(axis=-1), atol=0.5)


@pytest.mark.parametrize("variant", ["dynamic", "int8", "int16x8", "int4"])
def test_litert_quantizer_takes_recipes_and_ranges(variant, content, batch):
    with canary("litert-quantizer", f"makes {variant} by our recipe", "tflite/quantization.py"):
        options = ExportOptions(variant, calibration=[batch], granularity="channel")
        graph = unpack(quantize(content, options)).subgraphs[0]
        kernel = next(t for t in graph.tensors if list(t.shape) == [64, 32])
        assert type_name(kernel) == ("int4" if variant == "int4" else "int8")
        assert len(kernel.quantization.scale) == 64


def test_tf2onnx_is_helped(model):
    converter = "onnx/converter.py"
    with canary("tf2onnx", "converts with our handler and without XLA", converter):
        proto = build_onnx(Network(model), ExportOptions())
        operators = {node.op_type for node in proto.graph.node}
        assert "Erf" in operators
        assert not {"Erfc", "PartitionedCall", "StatefulPartitionedCall"} & operators
    with canary("tensorflow", "tells constants by the captures of a graph", converter):
        assert [value.name for value in proto.graph.input] == ["x"]
    with canary("tf2onnx", "reads TF2ONNX_CATCH_ERRORS to fail fast", converter):
        assert tf2onnx.constants.ENV_TF2ONNX_CATCH_ERRORS == "TF2ONNX_CATCH_ERRORS"
        assert "ENV_TF2ONNX_CATCH_ERRORS in os.environ" in inspect.getsource(tf2onnx.convert)


@pytest.mark.parametrize(
    ("variant", "element"), [("float16", "FLOAT16"), ("dynamic", "UINT8"), ("int8", "UINT8")]
)
def test_onnxruntime_quantizes(variant, element, batch):
    kernel = np.random.default_rng(0).normal(size=(144, 16)).astype(np.float32)
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 144), ("y", 16))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "kernel"], ["y"], "product")],
        "canary",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    flat = np.linspace(-1, 3, 8 * 144, dtype=np.float32).reshape(8, 144)
    with canary("onnxruntime", f"makes {variant} by our options", "onnx/quantization.py"):
        changed = as_variant(proto, ExportOptions(variant, calibration=[{"x": flat}])).graph
        stored = {tensor.name: tensor for tensor in changed.initializer}
        kernels = [tensor for tensor in stored.values() if list(tensor.dims) == [144, 16]]
        assert [tensor.data_type for tensor in kernels] == [getattr(onnx.TensorProto, element)]
        if variant == "int8":  # Of the ranges that we estimate, not of its own.
            scale = onnx.numpy_helper.to_array(stored["x_scale"])
            assert scale == pytest.approx(4 / 255, rel=1e-5)


def test_onnxruntime_ships_the_schema_of_ort(model, export, installed):
    path = export("ort", model)
    written = path.read_bytes()
    with canary("onnxruntime", "ships the schema of ORT that we read it by", "onnx/ort.py"):
        assert canonical(written) == written
        assert (32, 64) in {tensor.shape for tensor in installed("ort").stored_tensors(path)}
    with canary("onnxruntime", "leaves out layouts of this machine", "onnx/ort.py"):
        assert b"nchwc:" not in written


def test_tensorflow_has_the_saved_model_as_a_message(model, export, installed):
    with canary("tensorflow", "lists tensors of a SavedModel", "saved_model.py"):
        stored = installed("saved_model").stored_tensors(export("saved_model", model))
        assert (32, 64) in {tensor.shape for tensor in stored}


@pytest.mark.skipif(find_spec("tflite_micro") is None, reason="has no wheels here")
def test_tflite_micro_says_what_it_lacks(content):
    refused = pytest.raises(ConversionError, match="has no operator GELU")
    with canary("tflite-micro", "names operators that it lacks", "tflite/micro.py"), refused:
        measure_arena(adapted(content))
