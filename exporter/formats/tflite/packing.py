"""Reads, changes and writes flatbuffers by LiteRT's generated code, which is not documented."""

from functools import cache
from typing import TYPE_CHECKING, Any

from exporter.formats.base import KernelChange
from exporter.formats.flatbuffers import align, write
from exporter.formats.variants import FLOAT32

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUMMING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators whose inputs are activations, a kernel and, it may be, a bias."""


def unpack(content: bytes) -> Any:
    """Returns the ``ModelT`` of a flatbuffer: objects with the schema's fields."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(content)


def pack(model: Any) -> bytes:
    """Packs a ``ModelT``, and replaces its buffers by aligned ones within the flatbuffer.

    The quantizer appends the data of larger files, which TFLite Micro cannot read; the generated
    Python code leaves data unaligned, which processors without unaligned access cannot read.
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            if self.data is not None:
                align(builder, len(self.data))
            return super().Pack(builder)

    model.buffers = [
        AlignedBuffer(None if b.data is None else np.frombuffer(bytes(b.data), np.uint8))
        for b in model.buffers
    ]
    return write(model.Pack, b"TFL3")


def operator_name(code: Any) -> str:
    """Returns the name of a builtin operator, such as ``"CONV_2D"``, by an operator code."""
    # The older field has one byte, so newer operators are only in the other one.
    return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def name_of(model: Any, operator: Any) -> str:
    """Returns the name of an operator of a model, such as ``"CONV_2D"``."""
    return operator_name(model.operatorCodes[operator.opcodeIndex])


def constant(model: Any, tensor: Any) -> "NDArray[np.float32] | None":
    """Returns the elements of a constant tensor in float32; None for any other tensor."""
    import numpy as np

    data = model.buffers[tensor.buffer].data
    if data is None or type_name(tensor) != FLOAT32:
        return None
    return np.frombuffer(data, np.float32).reshape(tensor.shape)


def type_name(tensor: Any) -> str:
    """Returns the name of a tensor's element type, as NumPy has it."""
    return element_type(tensor.type)


def element_type(code: int) -> str:
    """Returns the name of an element type by its code, as NumPy has it."""
    return _names("TensorType")[code].lower()


@cache
def _names(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enumeration)).items()}


def rewrite_kernels(content: bytes, change: KernelChange) -> bytes:
    """Returns a copy of a flatbuffer in which ``change`` has given quantized kernels new elements.

    The bytes are replaced where they are. A buffer that several tensors share is changed once.
    """
    import numpy as np
    from ai_edge_litert.schema_py_generated import Model

    copy = bytearray(content)
    model = Model.GetRootAs(copy, 0)
    done: set[int] = set()
    graphs = (model.Subgraphs(index) for index in range(model.SubgraphsLength()))
    for tensor in (g.Tensors(index) for g in graphs for index in range(g.TensorsLength())):
        number, kind = tensor.Buffer(), element_type(tensor.Type())
        buffer = model.Buffers(number)
        scaled = tensor.Quantization() and tensor.Quantization().ScaleLength()
        known = kind == "float16" or (scaled and kind in {"int4", "int8", "uint8"})
        if number in done or not known or not buffer.DataLength():
            continue
        done.add(number)
        stored, name = buffer.DataAsNumpy(), (tensor.Name() or b"").decode()
        if kind == "int4":  # The first of two elements is in the lower half of a byte.
            halves = np.stack([stored << 4, stored], axis=-1).view(np.int8) >> 4
            low, high = change(name, halves.ravel()).reshape(-1, 2).T
            stored[:] = (low & 15 | high << 4).view(np.uint8)
        else:
            elements = stored.view(kind)
            elements[:] = change(name, elements.reshape(tensor.ShapeAsNumpy())).ravel()
    return bytes(copy)


def add_entry(model: Any, name: str, content: bytes) -> None:
    """Adds an entry to the metadata of a model."""
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.MetadataT(name, len(model.buffers))
    model.buffers.append(schema.BufferT(content))
    model.metadata = [*(model.metadata or []), entry]


def replace_select(model: Any) -> None:
    """Replaces SELECT, which TFLite Micro lacks, by SELECT_V2 where both compute the same.

    They differ only in how they broadcast a condition that is smaller than the values.
    """
    from ai_edge_litert import schema_py_generated as schema

    for number, code in enumerate(model.operatorCodes):
        uses = [
            (graph, operator)
            for graph in model.subgraphs
            for operator in graph.operators or ()
            if operator.opcodeIndex == number
        ]
        if operator_name(code) == "SELECT" and all(
            len({tuple(graph.tensors[index].shape) for index in operator.inputs}) == 1
            for graph, operator in uses
        ):
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SELECT_V2
            for _, operator in uses:
                operator.builtinOptionsType = schema.BuiltinOptions.SelectV2Options
                operator.builtinOptions = schema.SelectV2OptionsT()
