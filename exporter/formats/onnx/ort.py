"""The ORT format, which the reduced builds of ONNX Runtime for phones can read."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError, brief
from exporter.formats.base import ExportOptions, KernelChange, StoredTensor
from exporter.formats.flatbuffers import ALIGNMENT, write, write_bytes, write_offsets
from exporter.formats.onnx.onnx import OnnxRuntimeFormat, convert, is_kernel
from exporter.formats.variants import FLOAT16
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
        disabled = ["NchwcTransformer"]  # A layout for this machine only.
        if options.variant == FLOAT16:
            # It would store weights in float32, where operators have no kernel in half precision.
            disabled += ["FuseFp16InitializerToFp32NodeTransformer", "ConstantFolding"]
        try:
            onnxruntime.InferenceSession(
                content,
                session,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=disabled,
            )
        except Exception as error:  # onnxruntime's errors share no public base.
            path.unlink(missing_ok=True)
            if "Failed to save ORT format model" in str(error):  # On a full disk.
                raise OSError(brief(error)) from error
            raise ConversionError(f"ORT conversion failed: {brief(error)}") from error
        path.write_bytes(canonical(path.read_bytes()))

    def rewrite_kernels(self, path: Path, target: Path, change: KernelChange) -> None:
        """Replaces bytes of the initializers where they are; see the base class."""
        from onnx.helper import tensor_dtype_to_np_dtype

        content = bytearray(path.read_bytes())
        for tensor in _all_initializers(_graph(content)):
            # Text has no raw data.
            if not tensor.RawDataLength():
                continue
            flat = tensor.RawDataAsNumpy().view(tensor_dtype_to_np_dtype(tensor.DataType()))
            array = flat.reshape(_items(tensor, "Dims"))
            if is_kernel(array):
                flat[:] = change(tensor.Name().decode(), array).ravel()
        target.write_bytes(content)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the initializers of the graph, and of the graphs within its nodes."""
        return [_described(tensor) for tensor in _all_initializers(_graph(path.read_bytes()))]


def canonical(content: bytes) -> bytes:
    """Writes the kernels' types, which are in front of the model, in the order of their names.

    onnxruntime writes them in the order of a hash map, which differs each time. The model only
    refers to tables behind it, so its bytes are copied.
    """
    schema = _schema()
    session = schema.InferenceSession.InferenceSession.GetRootAs(content, 0)
    position = session.Model()._tab.Pos
    # Its table of offsets is in front of it, or behind it if shared with another table.
    distance = int.from_bytes(content[position : position + 4], "little", signed=True)
    start = min(position, position - distance)

    def root(builder: Any) -> int:
        def table(kind: str, **fields: int) -> int:
            module = getattr(schema, kind)
            module.Start(builder)
            for name, value in fields.items():
                getattr(module, f"Add{name}")(builder, value)
            end: int = module.End(builder)
            return end

        def argument(found: Any) -> int:
            return table("ArgTypeAndIndex", ArgType=found.ArgType(), Index=found.Index())

        def kernel(found: Any) -> int:
            args = write_offsets(builder, [argument(each) for each in _items(found, "Args")])
            name = builder.CreateString(found.KernelTypeStr())
            return table("KernelTypeStrArgsEntry", KernelTypeStr=name, Args=args)

        def operator(found: Any) -> int:
            kernels = [kernel(each) for each in _items(found, "KernelTypeStrArgs")]
            args = write_offsets(builder, kernels)
            name = builder.CreateString(found.OpId())
            return table("OpIdKernelTypeStrArgsEntry", OpId=name, KernelTypeStrArgs=args)

        # Offsets count from the end, so they stay valid.
        write_bytes(builder, bytes((start - len(content)) % ALIGNMENT) + content[start:])
        version = builder.CreateString(session.OrtVersion())
        operators = _items(session.KernelTypeStrResolver(), "OpKernelTypeStrArgs")
        args = write_offsets(builder, [operator(each) for each in operators])
        return table(
            "InferenceSession",
            OrtVersion=version,
            Model=len(content) - position,
            KernelTypeStrResolver=table("KernelTypeStrResolver", OpKernelTypeStrArgs=args),
        )

    return write(root, b"ORTM")


def _items(table: Any, field: str) -> list[Any]:
    """Returns the elements of a vector, which are sorted by their names where they have any."""
    at, count = getattr(table, field), getattr(table, f"{field}Length")()
    return [at(index) for index in range(count)]


def _schema() -> Any:
    """Imports the schema's modules from a folder of onnxruntime that is not on the path."""
    import onnxruntime

    folder = str(Path(onnxruntime.__file__).parent / "tools" / "ort_format_model")
    if folder not in sys.path:
        sys.path.append(folder)
    from ort_flatbuffers_py import fbs

    return fbs


def _graph(content: bytes | bytearray) -> Any:
    session = _schema().InferenceSession.InferenceSession
    if not session.InferenceSessionBufferHasIdentifier(content, 0):
        raise ValueError("it has no identifier of the ORT format")
    return session.GetRootAs(content, 0).Model().Graph()


def _all_initializers(graph: Any) -> Iterator[Any]:
    """Yields the initializers of a graph, and of the graphs within its nodes."""
    yield from _items(graph, "Initializers")
    for node in _items(graph, "Nodes"):
        for attribute in _items(node, "Attributes"):
            if attribute.G() is not None:
                yield from _all_initializers(attribute.G())


def _described(tensor: Any) -> StoredTensor:
    import numpy as np

    data = tensor.RawDataAsNumpy() if tensor.RawDataLength() else np.empty(0, np.uint8)
    flat = StoredTensor.of(tensor.Name().decode(), data)
    return replace(flat, shape=tuple(_items(tensor, "Dims")))
