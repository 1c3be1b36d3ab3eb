"""What TFLite and ONNX files tell of their model, read by other means than it was written."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import flatbuffers
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from exporter.card import ModelCard, Normalization
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.flatbuffer import convert
from exporter.formats.tflite.metadata import add_metadata
from exporter.graph.network import Network

LABELS = ("élan", "moose", "Rentier", "deer", "elk")
CARD = ModelCard(
    "Tells deer apart.",
    {"wide": Normalization(3.5, 255.0)},
    {"kind": LABELS},
)
MEDIAPIPE = "mediapipe==1.2.3"


@pytest.fixture
def model(build):
    return build("functional_two_inputs_two_outputs")


def metadata_in(content):
    """The buffers of a flatbuffer by the names in its list of metadata."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    return {entry.name: bytes(model.buffers[entry.buffer].data) for entry in model.metadata}


class Table:
    """Reads a table by the numbers of its fields, as they are in metadata_schema.fbs."""

    def __init__(self, buffer, position):
        self.table = flatbuffers.table.Table(buffer, position)

    def _at(self, number):
        offset = self.table.Offset(4 + 2 * number)
        return offset and offset + self.table.Pos

    def text(self, number):
        at = self._at(number)
        return self.table.String(at).decode() if at else None

    def byte(self, number):
        return self.table.Get(flatbuffers.number_types.Uint8Flags, self._at(number))

    def floats(self, number):
        offset = self._at(number) - self.table.Pos
        return self.table.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, offset).tolist()

    def one(self, number):
        return Table(self.table.Bytes, self.table.Indirect(self._at(number)))

    def several(self, number):
        at = self._at(number)
        if not at:
            return []
        offset = at - self.table.Pos
        start = self.table.Vector(offset)
        count = self.table.VectorLen(offset)
        positions = (self.table.Indirect(start + 4 * index) for index in range(count))
        return [Table(self.table.Bytes, position) for position in positions]


def read(content):
    """The ModelMetadata of a flatbuffer as plain values."""
    packed = metadata_in(content)[b"TFLITE_METADATA"]
    assert packed[4:8] == b"M001"
    root = Table(packed, int.from_bytes(packed[:4], "little"))
    (graph,) = root.several(3)

    def normalization(tensor):
        units = tensor.several(4)
        assert all(unit.byte(0) == 1 for unit in units)
        return [(unit.one(1).floats(0), unit.one(1).floats(1)) for unit in units]

    def files(tensor):
        return [(file.text(0), file.byte(2)) for file in tensor.several(6)]

    return {
        "name": root.text(0),
        "description": root.text(1),
        "parser": root.text(7),
        "inputs": {tensor.text(0): normalization(tensor) for tensor in graph.several(2)},
        "outputs": {tensor.text(0): files(tensor) for tensor in graph.several(3)},
    }


def test_tflite_tells_all_of_the_card(model, export):
    path = export("tflite", model, card=CARD)
    assert read(path.read_bytes()) == {
        "name": "functional_two_inputs_two_outputs",
        "description": "Tells deer apart.",
        "parser": "1.0.0",
        "inputs": {"wide": [([3.5], [255.0])], "deep": []},
        "outputs": {"kind": [("kind_labels.txt", 2)], "amount": []},
    }
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
        assert info.compress_type == zipfile.ZIP_STORED  # Mobile libraries unpack nothing else.
        assert info.filename == "kind_labels.txt"
        assert tuple(archive.read(info).decode().split("\n")) == LABELS


def test_tensors_are_told_of_in_the_order_of_the_graph(model, export):
    content = export("tflite", model, card=CARD).read_bytes()
    graph = Interpreter(model_content=content)
    signature = graph.get_signature_runner()
    for told, details, graph_details in (
        (read(content)["inputs"], signature.get_input_details(), graph.get_input_details()),
        (read(content)["outputs"], signature.get_output_details(), graph.get_output_details()),
    ):
        indices = [details[name]["index"] for name in told]
        assert indices == [detail["index"] for detail in graph_details]


def test_tflite_tells_the_name_alone_without_a_card(model, export):
    path = export("tflite", model)
    told = read(path.read_bytes())
    assert (told["name"], told["description"]) == (model.name, None)
    assert told["inputs"] == {"wide": [], "deep": []}
    assert told["outputs"] == {"kind": [], "amount": []}
    assert not zipfile.is_zipfile(path)


@pytest.mark.parametrize("zoo_name", ["conv_batchnorm_dropout", "residual"])
def test_tflite_computes_the_very_same(zoo_model, samples, tmp_path):
    content = convert(Network(zoo_model), ExportOptions())
    card = ModelCard("x" * 101, {}, {})
    told = add_metadata(content, zoo_model.name, card)
    inputs = samples(zoo_model, 7)
    plain, described = tmp_path / "plain.tflite", tmp_path / "described.tflite"
    plain.write_bytes(content)
    described.write_bytes(told)
    tflite = FORMATS["tflite"]
    for backend in tflite.backends:
        expected = tflite.load(plain, backend)(inputs)
        actual = tflite.load(described, backend)(inputs)
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array)
    before, after = metadata_in(content), metadata_in(told)
    assert after.keys() - before.keys() == {b"TFLITE_METADATA"}
    assert before[b"min_runtime_version"] == after[b"min_runtime_version"]
    assert tflite.stored_tensors(plain) == tflite.stored_tensors(described)


def test_tflite_grows_by_a_few_hundred_bytes(model):
    content = convert(Network(model), ExportOptions())
    assert len(add_metadata(content, model.name, ModelCard())) - len(content) < 500
    assert len(add_metadata(content, model.name, CARD)) - len(content) < 1000


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["tflite", "onnx", "ort"])
def test_the_same_card_gives_the_same_bytes(name, model, export):
    first, second = (export(name, model, card=CARD).read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["onnx", "ort"])
def test_onnxruntime_reads_the_card(name, model, export):
    path = export(name, model, card=CARD)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta()
    assert meta.description == "Tells deer apart."
    properties = meta.custom_metadata_map
    assert set(properties) == {"name", "description", "normalization", "labels"}
    assert properties["name"] == "functional_two_inputs_two_outputs"
    assert properties["description"] == "Tells deer apart."
    assert json.loads(properties["normalization"]) == {"wide": {"mean": 3.5, "std": 255.0}}
    assert json.loads(properties["labels"]) == {"kind": list(LABELS)}


def test_onnx_tells_the_name_alone_without_a_card(model, export):
    proto = onnx.load(export("onnx", model))
    assert proto.graph.name == model.name
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [("name", model.name)]
    assert not proto.doc_string


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory):
    """The reader of MediaPipe, out of its wheel: its dependencies are those of a camera app."""
    folder = tmp_path_factory.mktemp("mediapipe")
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*download, "-d", str(folder), MEDIAPIPE], check=False)
    if done.returncode:
        pytest.skip(f"pip cannot download {MEDIAPIPE}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        code = archive.extract("mediapipe/tasks/metadata/metadata_schema_py_generated.py", folder)
    spec = importlib.util.spec_from_file_location("metadata_schema_py_generated", code)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_mediapipe_reads_the_card(mediapipe, model, export):
    packed = metadata_in(export("tflite", model, card=CARD).read_bytes())[b"TFLITE_METADATA"]
    assert mediapipe.ModelMetadata.ModelMetadataBufferHasIdentifier(packed, 0)
    told = mediapipe.ModelMetadataT.InitFromObj(mediapipe.ModelMetadata.GetRootAs(packed, 0))
    assert (told.name.decode(), told.description.decode()) == (model.name, CARD.description)
    (graph,) = told.subgraphMetadata
    wide = next(tensor for tensor in graph.inputTensorMetadata if tensor.name == b"wide")
    (unit,) = wide.processUnits
    assert unit.optionsType == mediapipe.ProcessUnitOptions.NormalizationOptions
    assert (list(unit.options.mean), list(unit.options.std)) == ([3.5], [255.0])
    kind = next(tensor for tensor in graph.outputTensorMetadata if tensor.name == b"kind")
    (file,) = kind.associatedFiles
    assert file.name == b"kind_labels.txt"
    assert file.type == mediapipe.AssociatedFileType.TENSOR_AXIS_LABELS
