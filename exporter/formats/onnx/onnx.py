"""ONNX, for onnxruntime on servers, phones and in browsers."""

from pathlib import Path

from exporter.formats.base import ExportOptions, StoredTensor
from exporter.formats.onnx.graph import OnnxRuntimeFormat, convert, list_tensors
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
        return list_tensors(path)
