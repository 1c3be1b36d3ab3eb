"""Reads, changes and writes flatbuffers of TensorFlow Lite.

Alone uses the code that LiteRT generates from the schema, which no documentation covers.
"""

from functools import cache
from typing import Any

from exporter.formats.flatbuffers import align, write


def unpack(content: bytes) -> Any:
    """Returns the ``ModelT`` of a flatbuffer: objects with the schema's fields."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(content)


def pack(model: Any) -> bytes:
    """Packs a model with all that it needs inside, and data aligned.

    The quantizer appends the data of larger files, which TFLite Micro cannot read; and the
    generated Python leaves them unaligned, which processors without unaligned access cannot.

    Args:
        model: What ``unpack`` returned; its buffers are replaced by aligned ones.
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
    # The older field has one byte, so newer operators are in the other alone.
    return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def type_name(tensor: Any) -> str:
    """Returns the name of a tensor's element type, as NumPy has it."""
    return _names("TensorType")[tensor.type].lower()


@cache
def _names(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enumeration)).items()}


def add_entry(model: Any, name: str, content: bytes) -> None:
    """Adds an entry to the metadata of a model."""
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.MetadataT(name, len(model.buffers))
    model.buffers.append(schema.BufferT(content))
    model.metadata = [*(model.metadata or []), entry]


def replace_select(model: Any) -> None:
    """Replaces SELECT, which TFLite Micro has not, by SELECT_V2 where both do the same.

    They differ only in how a condition is spread that is smaller than what it chooses between.
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
