"""Writes flatbuffers; alone imports the package of this name, whose writer is not documented."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

ALIGNMENT = 16
"""Of the bytes of a vector, as TensorFlow Lite's schema demands it."""


def write(root: Callable[[Any], int], identifier: bytes) -> bytes:
    """Writes a flatbuffer.

    Args:
        root: Writes the root table with the builder that it is given, and returns its offset.
        identifier: Four bytes that name the schema.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(root(builder), identifier)
    return bytes(builder.Output())


def align(builder: Any, count: int) -> None:
    """Pads, so that a vector of so many bytes starts at a multiple of 16 if it is written next."""
    builder.Prep(ALIGNMENT, count)


def write_bytes(builder: Any, content: bytes) -> int:
    """Writes an aligned vector of bytes, and returns its offset."""
    align(builder, len(content))
    end: int = builder.CreateByteVector(content)
    return end


def write_offsets(builder: Any, offsets: Sequence[int]) -> int:
    """Writes a vector of tables or strings that are written already, and returns its offset."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end


def write_table(
    builder: Any, offsets: Mapping[int, int], numbers: Mapping[int, int] | None = None
) -> int:
    """Writes a table, and returns its offset.

    Args:
        builder: The builder that ``write`` gave.
        offsets: Offset of what is written already, by number of the field.
        numbers: Unsigned integers of one byte, by number of the field.
    """
    single = numbers or {}
    builder.StartObject(1 + max([*offsets, *single]))
    for number, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    for number, value in single.items():
        builder.PrependUint8Slot(number, value, 0)
    end: int = builder.EndObject()
    return end
