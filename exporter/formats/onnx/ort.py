"""The ORT format, which the reduced builds of ONNX Runtime for phones can read."""

from pathlib import Path

from exporter.errors import ConversionError, brief
from exporter.formats.base import ExportOptions, StoredTensor
from exporter.formats.onnx.graph import OnnxRuntimeFormat, convert
from exporter.formats.onnx.ort_flatbuffer import canonical, list_tensors
from exporter.graph.network import Network


class Ort(OnnxRuntimeFormat):
    """One flatbuffer of the ONNX graph, optimized beforehand for processors of any kind."""

    name = "ort"
    suffix = ".ort"

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the same file as ``onnxruntime.tools.convert_onnx_models_to_ort`` would.

        That tool prints, and sets up logging for the whole process, so its one call is made here.
        """
        import onnxruntime

        content = convert(network, options)
        session = onnxruntime.SessionOptions()
        session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session.optimized_model_filepath = str(path)
        session.add_session_config_entry("session.save_model_format", "ORT")
        # Otherwise weights of int8 become uint8, for processors of PCs.
        session.add_session_config_entry("session.qdqisint8allowed", "1")
        try:
            onnxruntime.InferenceSession(
                content,
                session,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],  # A layout for this machine only.
            )
        except Exception as error:  # onnxruntime's errors share no public base.
            path.unlink(missing_ok=True)
            if "Failed to save ORT format model" in str(error):  # On a full disk.
                raise OSError(brief(error)) from error
            raise ConversionError(f"ORT conversion failed: {brief(error)}") from error
        path.write_bytes(canonical(path.read_bytes()))

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the initializers of the graph, and of the graphs within its nodes."""
        return list_tensors(path.read_bytes())
