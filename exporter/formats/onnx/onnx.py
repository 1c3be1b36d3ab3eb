"""The ONNX format, for onnxruntime on servers, phones and in browsers."""

from pathlib import Path

from exporter.formats.base import ExportOptions, StoredTensor
from exporter.formats.onnx.graph import OnnxRuntimeFormat, convert
from exporter.graph.network import Network


class Onnx(OnnxRuntimeFormat):
    """One protobuf with the Keras model's names and a batch dimension called ``batch``."""

    name = "onnx"
    suffix = ".onnx"

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the graph; see the base class."""
        path.write_bytes(convert(network, options))

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the initializers and the constant nodes."""
        import onnx

        graph = onnx.load(path).graph
        named = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            values = (each.t for each in node.attribute if each.name == "value")
            if node.op_type == "Constant":
                named += [(node.output[0], tensor) for tensor in values]
        return [StoredTensor.of(name, onnx.numpy_helper.to_array(tensor)) for name, tensor in named]
