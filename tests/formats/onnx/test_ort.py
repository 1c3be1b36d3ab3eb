import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest

from exporter.card import ModelCard, Normalization
from exporter.commands.compress import compress
from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.formats.onnx.ort import canonical
from exporter.graph.network import Network
from exporter.verification.structure import prove_structure

ORT = FORMATS["ort"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("zoo_name", ["residual", "conv_batchnorm_dropout"])
def test_it_is_what_the_tool_of_onnxruntime_writes(zoo_name, export_zoo, tmp_path):
    path, graph = (export_zoo(name, zoo_name).path for name in ("ort", "onnx"))
    tool = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(graph)]
    options = ["--optimization_style", "Fixed", "--target_platform", "arm"]
    subprocess.run(
        [*tool, *options, "--output_dir", str(tmp_path / "tool")], check=True, capture_output=True
    )
    written = (tmp_path / "tool" / graph.with_suffix(".ort").name).read_bytes()
    assert path.read_bytes() == canonical(written)


def test_it_prints_nothing_and_leaves_no_other_file(build, export, tmp_path, capfd):
    path = export("ort", build("tiny"))
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr().out == ""


def test_the_constants_are_those_of_the_onnx_graph(export_zoo):
    """Where the optimizer of onnxruntime finds nothing to fold."""
    stored, plain = (
        FORMATS[name].stored_tensors(export_zoo(name, "sequential_mlp").path)
        for name in ("ort", "onnx")
    )
    weights = {tensor.digest for tensor in plain if len(tensor.shape) == 2}
    assert len(weights) == 3
    found = {tensor.digest: tensor for tensor in stored}
    assert weights <= set(found)
    for tensor in plain:
        if tensor.digest in weights:
            assert found[tensor.digest].shape == tensor.shape
            assert found[tensor.digest].nbytes == tensor.nbytes


def test_structure_is_proven(build, export):
    compressed = compress(build("sequential_mlp"), {"hidden_1": 4, "hidden_2": 5})
    path = export("ort", compressed.model)
    proof = prove_structure(ORT.stored_tensors(path), path.stat().st_size, compressed)
    assert proof.passed
    assert [layer.factors for layer in proof.layers] == [((36, 4), (4, 40)), ((40, 5), (5, 32))]


class Cell(keras.layers.Layer):
    """A recurrence that is no operator of ONNX."""

    state_size = 6

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 6), name="kernel")

    def call(self, inputs, states):
        state = keras.ops.sin(keras.ops.matmul(inputs, self.kernel) + states[0])
        return state, [state]


def test_constants_of_loops_are_listed(export, samples):
    keras.utils.set_random_seed(0)
    rnn = keras.layers.RNN(Cell(name="cell"), name="loop")
    model = keras.Sequential([keras.Input((5, 3), name="sequence"), rnn])
    path = export("ort", model)
    kernel = rnn.cell.kernel.numpy()
    assert (3, 6) in {tensor.shape for tensor in ORT.stored_tensors(path)}
    assert kernel.nbytes in {tensor.nbytes for tensor in ORT.stored_tensors(path)}
    inputs = samples(model, 2)
    (actual,) = ORT.load(path, "cpu")(inputs).values()
    (expected,) = Network(model).runner(eager=True)(inputs).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_another_format_is_no_artifact(build, export):
    with pytest.raises(ValueError, match="no identifier of the ORT format"):
        ORT.stored_tensors(export("onnx", build("tiny")))


def test_an_operator_that_onnx_lacks_is_an_error_and_writes_nothing(
    unconvertible, export, tmp_path
):
    with pytest.raises(ConversionError, match="Erfinv"):
        export("ort", unconvertible)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_no_fault_of_the_model(build, tmp_path):
    with pytest.raises(OSError, match="Failed to save"):
        ORT.export(Network(build("tiny")), tmp_path / "missing" / "model.ort", ExportOptions())


def test_the_card_is_carried_on(build, export):
    card = ModelCard("Sorts.", {"features": Normalization(std=2)}, {"scores": tuple("abcdef")})
    metas = [
        onnxruntime.InferenceSession(str(export(name, build("tiny"), card=card))).get_modelmeta()
        for name in ("ort", "onnx")
    ]
    assert metas[0].custom_metadata_map == metas[1].custom_metadata_map
    assert set(metas[0].custom_metadata_map) == {"name", "description", "normalization", "labels"}
    assert metas[0].description == metas[1].description == "Sorts."


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("variant", "io_type"),
    [
        ("float16", "float32"),
        ("dynamic", "float32"),
        ("int8", "float32"),
        ("int8", "int8"),
        ("int8", "uint8"),
    ],
)
def test_variants_predict_what_those_of_onnx_do(variant, io_type, build, export, samples):
    model = build("sequential_mlp")
    options = {"variant": variant, "io_type": io_type, "calibration": [samples(model, 64)]}
    runners, interfaces = [], []
    for name in ("ort", "onnx"):
        path = export(name, model, **options)
        runners.append(FORMATS[name].load(path, "cpu"))
        interfaces.append(FORMATS[name].interface(path, Network(model)))
    assert interfaces[0] == interfaces[1]
    assert {info.dtype for info in interfaces[0][0]} == {io_type}
    inputs = samples(model, 16)
    (actual,), (expected,) = (runner(inputs).values() for runner in runners)
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())
