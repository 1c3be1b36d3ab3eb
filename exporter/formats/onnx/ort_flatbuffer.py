"""The flatbuffer of the ORT format: what is stored in it, and how to write it alike each time."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.formats.base import StoredTensor
from exporter.formats.flatbuffers import ALIGNMENT, write, write_bytes, write_offsets


def list_tensors(content: bytes) -> list[StoredTensor]:
    """Lists the initializers of the graph, and of the graphs within its nodes.

    Raises:
        ValueError: If the content is no file of the ORT format.
    """
    session = _schema().InferenceSession.InferenceSession
    if not session.InferenceSessionBufferHasIdentifier(content, 0):
        raise ValueError("it has no identifier of the ORT format")
    graph = session.GetRootAs(content, 0).Model().Graph()
    return [stored for inner in _graphs(graph) for stored in _initializers(inner)]


def canonical(content: bytes) -> bytes:
    """Writes the kernels' types in an order of names.

    onnxruntime writes them in that of a hash map, which is another each time, in front of the
    model. The model itself, which refers to what is behind it alone, is taken as it is.
    """
    schema = _schema()
    session = schema.InferenceSession.InferenceSession.GetRootAs(content, 0)
    position = session.Model()._tab.Pos
    # Its table of offsets is in front of it, or behind it if that of another table is the same.
    distance = int.from_bytes(content[position : position + 4], "little", signed=True)
    start = min(position, position - distance)

    def root(builder: Any) -> int:
        # Distances from the end, which offsets are counted by, stay what they were.
        write_bytes(builder, bytes((start - len(content)) % ALIGNMENT) + content[start:])
        version = builder.CreateString(session.OrtVersion())
        resolver = _resolver(builder, schema, session.KernelTypeStrResolver())
        schema.InferenceSession.Start(builder)
        schema.InferenceSession.AddOrtVersion(builder, version)
        schema.InferenceSession.AddModel(builder, len(content) - position)
        schema.InferenceSession.AddKernelTypeStrResolver(builder, resolver)
        end: int = schema.InferenceSession.End(builder)
        return end

    return write(root, b"ORTM")


def _resolver(builder: Any, schema: Any, found: Any) -> int:
    operators = []
    for operator in _items(found.OpKernelTypeStrArgs, found.OpKernelTypeStrArgsLength()):
        kernels = []
        for kernel in _items(operator.KernelTypeStrArgs, operator.KernelTypeStrArgsLength()):
            arguments = []
            for argument in _items(kernel.Args, kernel.ArgsLength()):
                schema.ArgTypeAndIndex.Start(builder)
                schema.ArgTypeAndIndex.AddArgType(builder, argument.ArgType())
                schema.ArgTypeAndIndex.AddIndex(builder, argument.Index())
                arguments.append(schema.ArgTypeAndIndex.End(builder))
            vector = write_offsets(builder, arguments)
            name = builder.CreateString(kernel.KernelTypeStr())
            schema.KernelTypeStrArgsEntry.Start(builder)
            schema.KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
            schema.KernelTypeStrArgsEntry.AddArgs(builder, vector)
            kernels.append(schema.KernelTypeStrArgsEntry.End(builder))
        vector = write_offsets(builder, kernels)
        name = builder.CreateString(operator.OpId())
        schema.OpIdKernelTypeStrArgsEntry.Start(builder)
        schema.OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        schema.OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, vector)
        operators.append(schema.OpIdKernelTypeStrArgsEntry.End(builder))
    vector = write_offsets(builder, operators)
    schema.KernelTypeStrResolver.Start(builder)
    schema.KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, vector)
    end: int = schema.KernelTypeStrResolver.End(builder)
    return end


def _items(at: Any, count: int) -> list[Any]:
    """Returns the tables of a vector, which has been sorted by their names where they have any."""
    return [at(index) for index in range(count)]


def _schema() -> Any:
    """Imports the schema's modules from where onnxruntime ships them, off the path."""
    import onnxruntime

    folder = str(Path(onnxruntime.__file__).parent / "tools" / "ort_format_model")
    if folder not in sys.path:
        sys.path.append(folder)
    from ort_flatbuffers_py import fbs

    return fbs


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in _items(graph.Nodes, graph.NodesLength()):
        for attribute in _items(node.Attributes, node.AttributesLength()):
            if attribute.G() is not None:
                yield from _graphs(attribute.G())


def _initializers(graph: Any) -> Iterator[StoredTensor]:
    import numpy as np

    for tensor in _items(graph.Initializers, graph.InitializersLength()):
        data = tensor.RawDataAsNumpy() if tensor.RawDataLength() else np.empty(0, np.uint8)
        flat = StoredTensor.of(tensor.Name().decode(), data)
        shape = tuple(_items(tensor.Dims, tensor.DimsLength()))
        yield StoredTensor(flat.name, shape, flat.nbytes, flat.digest)
