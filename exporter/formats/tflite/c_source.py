"""The C source format for microcontrollers: a flatbuffer as an array for TensorFlow Lite Micro."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions, Format, KernelChange, Runner, StoredTensor
from exporter.formats.batches import batch_of, batched
from exporter.formats.extras import MICRO
from exporter.formats.flatbuffers import ALIGNMENT
from exporter.formats.tflite.flatbuffer import (
    convert,
    list_operators,
    list_tensors,
    read_interface,
)
from exporter.formats.tflite.micro import MICRO_VARIANTS, MicroRunner, adapted, measure_arena
from exporter.formats.tflite.packing import rewrite_kernels
from exporter.formats.tflite.quantization import VARIANTS
from exporter.formats.tflite.runner import REFERENCE, LiteRTRunner, activations
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo, Tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER = "model_data.h"
SOURCE = "model_data.cc"

_MICRO = "tflite_micro"
_ARENA = re.compile(r"^#define \w+_ARENA_BYTES (\d+)$", re.MULTILINE)
_BYTES_IN_LINE = 16

_C_TYPES = {"bool": "bool", "float32": "float"} | {
    dtype: f"{dtype}_t" for dtype in ("int8", "int16", "int32", "int64", "uint8")
}


class CSource(Format):
    """A folder with a header for C and C++, and a C++ file that defines the array.

    A microcontroller has no memory to spare, so a free batch is 1 unless the options set it.
    """

    name = "c"
    suffix = ""
    variants = tuple(v for v in VARIANTS if v.name in MICRO_VARIANTS)
    backends = (_MICRO, REFERENCE)
    runtime = ("tflite_micro", "ai_edge_litert.interpreter")
    slow = True
    threaded = False
    extra = MICRO
    targets = frozenset({"here", "micro", "macs"})
    snippets: ClassVar = {"C++": "micro.cc"}

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the folder; see the base class."""
        for info in network.inputs:
            if None in info.shape[1:]:
                raise ConversionError(
                    "TFLite Micro needs inputs of fixed sizes; only the batch may be free. "
                    f"Received: input {info.name!r} of shape {info.shape}."
                )
        # A scale a channel takes 8 bytes of the arena, and kernels older than 2024 do not know it.
        options = replace(options, dense_by_tensor=True, batch=options.batch or 1)
        content = adapted(convert(network, options))
        name, arena_bytes = identifier(network.name), measure_arena(content)
        path.mkdir()
        texts = {SOURCE: _source(name, content), HEADER: _header(name, content, arena_bytes)}
        for file, text in texts.items():
            (path / file).write_text(text, encoding="ascii", newline="\n")

    def recognizes(self, path: Path) -> bool:
        """Tells whether a path is a folder with the two files in it."""
        return (path / SOURCE).is_file() and (path / HEADER).is_file()

    def read_interface(self, path: Path) -> Interface:
        """Reads the inputs and outputs from the array."""
        return read_interface(_content(path))

    def fixed_batch(self, path: Path) -> int | None:
        """Reads the batch size from the array."""
        return batch_of(self.read_interface(path)[0])

    def size(self, path: Path) -> int:
        """Returns the bytes of the array."""
        return len(_content(path))

    def figures(self, path: Path) -> Mapping[str, int]:
        """Returns the bytes of the arena."""
        return {"arena_bytes": _arena_bytes(path)}

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the array in TFLite Micro with the arena of the header, or in LiteRT."""
        content = _content(path)
        runner: Runner = (
            MicroRunner(content, _arena_bytes(path))
            if backend == _MICRO
            else LiteRTRunner(content, backend, threads)
        )
        return batched(runner, read_interface(content)[0])

    def flatbuffer(self, path: Path) -> bytes:
        """Reads the array back."""
        return _content(path)

    def activations(self, path: Path, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Runs LiteRT's kernels without XNNPACK; see the base class."""
        return activations(_content(path), inputs)

    def rewrite_kernels(self, path: Path, target: Path, change: KernelChange) -> None:
        """Changes the array; see the base class."""
        content, text = _content(path), (path / HEADER).read_text(encoding="ascii")
        name = text[: text.index("_data[]")].rpartition(" ")[2]
        target.mkdir()
        (target / HEADER).write_text(text, encoding="ascii", newline="\n")
        source = _source(name, rewrite_kernels(content, change))
        (target / SOURCE).write_text(source, encoding="ascii", newline="\n")

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the tensors of the array that have a buffer with content."""
        return list_tensors(_content(path))


def identifier(name: str) -> str:
    """Turns a model's name into the first part of identifiers of C and C++."""
    # Names with two underscores in a row, or a leading one, are reserved for the compiler.
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
    sizes, c_type = [size or 1 for size in info.shape], _C_TYPES.get(info.dtype)
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
    found = _ARENA.search((path / HEADER).read_text(encoding="ascii"))
    if found is None:
        raise ValueError(f"{path / HEADER} does not define the bytes of the arena")
    return int(found[1])
