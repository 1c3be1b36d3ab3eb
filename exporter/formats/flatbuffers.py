"""Writes flatbuffers, by the writer of the package of this name, which is not documented."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

ALIGNMENT = 16
"""Alignment of vectors in bytes, as TensorFlow Lite's schema demands it."""


def write(root: Callable[[Any], int], identifier: bytes) -> bytes:
    """Writes a flatbuffer by a function that writes the root table and returns its offset.

    Four bytes, the ``identifier``, name the schema.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(root(builder), identifier)
    return bytes(builder.Output())


def align(builder: Any, count: int) -> None:
    """Pads, so that a vector of ``count`` bytes that is written next starts at a multiple of 16."""
    builder.Prep(ALIGNMENT, count)


def write_bytes(builder: Any, content: bytes) -> int:
    """Writes an aligned vector of bytes, and returns its offset."""
    align(builder, len(content))
    end: int = builder.CreateByteVector(content)
    return end


def write_offsets(builder: Any, offsets: Sequence[int]) -> int:
    """Writes a vector of tables or strings that were written before, and returns its offset."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end


def write_table(
    builder: Any, offsets: Mapping[int, int], numbers: Mapping[int, int] | None = None
) -> int:
    """Writes a table, and returns its offset.

    Fields, by number, are offsets of what was written before, and unsigned integers of one byte.
    """
    numbers = numbers or {}
    builder.StartObject(1 + max([*offsets, *numbers]))
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, value in numbers.items():
        builder.PrependUint8Slot(field, value, 0)
    end: int = builder.EndObject()
    return end
