"""C source for microcontrollers: the flatbuffer as an array, for TensorFlow Lite Micro."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions, Format, Runner, StoredTensor
from exporter.formats.extras import Extra
from exporter.formats.tflite.flatbuffer import (
    convert,
    interface,
    list_operators,
    list_tensors,
    read_interface,
)
from exporter.formats.tflite.micro import (
    ALIGNMENT,
    BatchByBatch,
    MicroRunner,
    adapted,
    measure_arena,
)
from exporter.formats.tflite.quantization import VARIANTS
from exporter.formats.tflite.runner import REFERENCE, LiteRTRunner
from exporter.formats.variants import FLOAT32, INT8
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo

HEADER = "model_data.h"
SOURCE = "model_data.cc"

_MICRO = "tflite_micro"
_ARENA = re.compile(r"^#define \w+_ARENA_BYTES (\d+)$", re.MULTILINE)
_BYTES_IN_LINE = 16

_C_TYPES = {
    "bool": "bool",
    "float32": "float",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
}


class CSource(Format):
    """A folder with a header for C and C++, and a C++ file that defines the array.

    A microcontroller has no memory to spare, so the batch is 1 where the model leaves it free.
    """

    name = "c"
    suffix = ""
    # TFLite Micro runs neither float16 nor what computes in both integers and real numbers.
    variants = tuple(v for v in VARIANTS if v.name in {FLOAT32, INT8})
    backends = (_MICRO, REFERENCE)
    slow = True
    extra = Extra("micro", ("tflite-micro",))
    batch = 1

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the folder; see the base class."""
        for info in network.inputs:
            if None in info.shape[1:]:
                raise ConversionError(
                    "TFLite Micro needs inputs of fixed sizes; only the batch may be free. "
                    f"Received: input {info.name!r} of shape {info.shape}."
                )
        # A scale a channel takes 8 bytes of the arena, and kernels older than 2024 do not know it.
        options = replace(options, dense_by_tensor=True)
        content = adapted(convert(network, options, batch=self.batch))
        arena_bytes = measure_arena(content)
        name = identifier(network.name)
        path.mkdir()
        for file, text in (
            (SOURCE, _source(name, content)),
            (HEADER, _header(name, content, arena_bytes)),
        ):
            (path / file).write_text(text, encoding="ascii", newline="\n")

    def recognizes(self, path: Path) -> bool:
        """Tells whether a path is a folder with the two files in it."""
        return (path / SOURCE).is_file() and (path / HEADER).is_file()

    def interface(self, path: Path, network: Network) -> Interface:
        """Reads what the array takes and gives; see the base class."""
        return interface(_content(path), network)

    def size(self, path: Path) -> int:
        """Returns the bytes of the array."""
        return len(_content(path))

    def figures(self, path: Path) -> Mapping[str, int]:
        """Returns the bytes of the arena."""
        return {"arena_bytes": _arena_bytes(path)}

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the array in TFLite Micro and the arena of the header, or in LiteRT."""
        content = _content(path)
        runner: Runner
        if backend == _MICRO:
            runner = MicroRunner(content, _arena_bytes(path))
        else:
            runner = LiteRTRunner(content, backend, threads)
        return BatchByBatch(runner, read_interface(content)[0][0].fixed_batch or 1)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the tensors of the array that have a buffer with content."""
        return list_tensors(_content(path))


def identifier(name: str) -> str:
    """Turns a model's name into the first part of identifiers of C and C++."""
    # No two underscores in a row, nor a leading one: those names are the compiler's.
    words = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
    return words if words[:1].isalpha() else f"model_{words}".rstrip("_")


def _source(name: str, content: bytes) -> str:
    starts = range(0, len(content), _BYTES_IN_LINE)
    lines = (content[start : start + _BYTES_IN_LINE].hex(",") for start in starts)
    array = "\n".join(f"0x{line.replace(',', ',0x')}," for line in lines)
    return f"""\
#include "{HEADER}"

alignas({ALIGNMENT}) const unsigned char {name}_data[] = {{
{array}
}};

const size_t {name}_data_size = sizeof {name}_data;
"""


def _header(name: str, content: bytes, arena_bytes: int) -> str:
    from exporter.version import __version__

    prefix = name.upper()
    operators = list_operators(content)
    tensors = "\n".join(
        line
        for kind, infos in zip(("INPUT", "OUTPUT"), read_interface(content), strict=True)
        for index, info in enumerate(infos)
        for line in _constants(f"{prefix}_{kind}_{index}", info)
    )
    return f"""\
// Model {name} for TensorFlow Lite Micro, written by exporter {__version__}.

#ifndef {prefix}_MODEL_DATA_H_
#define {prefix}_MODEL_DATA_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

// The flatbuffer: {len(content)} bytes, aligned to {ALIGNMENT}.
extern const unsigned char {name}_data[];
extern const size_t {name}_data_size;

#ifdef __cplusplus
}}
#endif

// Size of the tensor arena, which must be aligned to {ALIGNMENT} bytes. Measured with the reference
// kernels on a 64-bit machine; others may need less, or more for scratch buffers.
#define {prefix}_ARENA_BYTES {arena_bytes}

// {", ".join(operators)}
#define {prefix}_OPERATOR_COUNT {len(operators)}

// Inputs and outputs, numbered as the interpreter does. Of integers that stand for real numbers:
// real = SCALE * (integer - ZERO_POINT).
{tensors}

#endif  // {prefix}_MODEL_DATA_H_
"""


def _constants(prefix: str, info: TensorInfo) -> Iterator[str]:
    sizes = [size or 1 for size in info.shape]
    c_type = _C_TYPES.get(info.dtype)
    if c_type is None:
        raise ConversionError(
            f"TFLite Micro takes and gives {', '.join(_C_TYPES)}. Received: {info.name!r} of type "
            f"{info.dtype}."
        )
    yield f'#define {prefix}_NAME "{info.name}"'
    yield f"#define {prefix}_TYPE {c_type}"
    yield f"#define {prefix}_SHAPE {{{', '.join(map(str, sizes))}}}"
    yield f"#define {prefix}_SIZE {prod(sizes)}"
    if info.quantization is not None:
        yield f"#define {prefix}_SCALE {info.quantization.scale!r}f"
        yield f"#define {prefix}_ZERO_POINT ({info.quantization.zero_point})"


def _content(path: Path) -> bytes:
    """Reads the flatbuffer back from the source."""
    text = (path / SOURCE).read_text(encoding="ascii")
    digits = text[text.index("{") + 1 : text.rindex("}")]
    return bytes.fromhex(digits.replace("0x", "").replace(",", " "))


def _arena_bytes(path: Path) -> int:
    text = (path / HEADER).read_text(encoding="ascii")
    found = _ARENA.search(text)
    if found is None:
        raise ValueError(f"{path / HEADER} does not define the bytes of the arena")
    return int(found[1])
