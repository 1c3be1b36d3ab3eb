"""Reads and writes flatbuffers; those of TensorFlow Lite so that every runtime can read them."""

from collections.abc import Sequence
from typing import Any

_ALIGNMENT = 16
"""Of the data of a buffer, in bytes, as the schema demands it."""


def unpack(content: bytes) -> Any:
    """Returns the ``ModelT`` of a TensorFlow Lite flatbuffer."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(content)


def pack(model: Any) -> bytes:
    """Packs a model with all that it needs inside, and data aligned.

    The quantizer appends the data of larger files, which TFLite Micro cannot read; and the
    generated Python leaves them unaligned, which processors without unaligned access cannot.

    Args:
        model: A ``ModelT`` of the generated Python.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> int:  # noqa: N802
            data = None if self.data is None else bytes(self.data)
            if data is not None:
                builder.StartVector(1, len(data), _ALIGNMENT)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if data is not None:
                schema.BufferAddData(builder, vector)
            buffer: int = schema.BufferEnd(builder)
            return buffer

    model.buffers = [AlignedBuffer(buffer.data) for buffer in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def write_offsets(builder: Any, offsets: Sequence[int]) -> int:
    """Writes a vector of what is written before it, of tables or of strings."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end
