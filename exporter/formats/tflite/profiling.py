"""Profiles flatbuffers by LiteRT's C interface, for its Python interface has no profiler.

The library is in the same wheel. Functions return a status, which is 0 if all is well, and hand out
what they make through their last argument. Nothing is released: this runs in a process of its own.
"""

import ctypes
import re
from ctypes import byref, c_bool, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ConversionError
from exporter.formats.base import OperatorTime, to_stored
from exporter.graph.signature import Tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM_UP_CALLS = 5

_CPU = 1
_FOR_WRITING = 1
_LAYOUT_BYTES = 68  # Of rank, sizes and strides.
_TYPE_BYTES = 4 + _LAYOUT_BYTES  # After the element type.

_ROW = re.compile(r"^ *(?:Delegate/)?(\S.*?) +(\d+) +[\d.]+ +([\d.]+)% +[\d.]+% +\S+ +\d+$")
_TOTAL = re.compile(r"^Timings \(microseconds\): count=\d+.* curr=(\d+)", re.MULTILINE)


class _LiteRT:
    """The functions of the library, by name."""

    def __init__(self) -> None:
        import ai_edge_litert

        folder = Path(ai_edge_litert.__file__).parent
        try:
            [library] = folder.glob("libLiteRt.*")
            self._library = ctypes.CDLL(str(library))
        except (ValueError, OSError) as error:
            raise ConversionError(f"LiteRT has no library to profile with in {folder}.") from error

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function; raises ConversionError if it fails or is not there."""
        try:
            status = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise ConversionError(f"LiteRT has no function {name}.") from error
        if status:
            raise ConversionError(f"LiteRT's function {name} failed with status {status}.")

    def make(self, name: str, *arguments: Any) -> c_void_p:
        """Calls a function and returns what it makes."""
        made = c_void_p()
        self.call(name, *arguments, byref(made))
        return made


def profile(
    path: Path, inputs: Tensors, infos: Any, threads: int, calls: int
) -> list[OperatorTime]:
    """Returns the time by kind of operator, those of XNNPACK too; see ``Format.profile``.

    ``infos`` are the inputs of the flatbuffer, in its order.
    """
    lite = _LiteRT()
    environment = lite.make("LiteRtCreateEnvironment", 0, None)
    model = lite.make("LiteRtCreateModelFromFile", environment, str(path).encode())
    options = lite.make("LiteRtCreateOptions")
    lite.call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
    keep = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)  # The texts belong to Python.
    settings = {"runtime_options_string": "enable_profiling = true\n"}
    settings["xnnpack"] = f"num_threads = {threads}\n"
    texts = {k.encode(): ctypes.create_string_buffer(v.encode()) for k, v in settings.items()}
    for kind, text in texts.items():
        opaque = lite.make("LiteRtCreateOpaqueOptions", kind, text, keep)
        lite.call("LiteRtAddOpaqueOptions", options, opaque)
    compiled = lite.make("LiteRtCreateCompiledModel", environment, model, options)
    arrays = list(to_stored(inputs, infos).values())
    for index, array in enumerate(arrays):
        sizes = (c_int * array.ndim)(*array.shape)
        which = (c_size_t(0), c_size_t(index))
        resize = "LiteRtCompiledModelResizeInputTensorNonStrict"
        lite.call(resize, compiled, *which, sizes, c_size_t(array.ndim))
    signature = lite.make("LiteRtGetModelSignature", model, c_size_t(0))
    given, results = (
        _buffers(lite, environment, compiled, signature, role) for role in ("Input", "Output")
    )
    for buffer, array in zip(given, arrays, strict=True):
        _fill(lite, c_void_p(buffer), array)
    profiler = lite.make("LiteRtCompiledModelGetProfiler", compiled)
    first = c_size_t(0)
    both = (c_size_t(len(given)), given, c_size_t(len(results)), results)
    for number in range(WARM_UP_CALLS + calls):
        if number == WARM_UP_CALLS:
            lite.call("LiteRtStartProfiler", profiler)
        lite.call("LiteRtRunCompiledModel", compiled, first, *both)
    lite.call("LiteRtStopProfiler", profiler)
    summary = c_char_p()
    lite.call("LiteRtGetProfileSummary", profiler, compiled, byref(summary))
    return read_summary((summary.value or b"").decode(errors="replace"), calls)


def read_summary(text: str, calls: int) -> list[OperatorTime]:
    """Reads the table by kind of operator in what the profiler tells of some calls.

    Raises:
        ConversionError: If there is none.
    """
    total = _TOTAL.search(text)
    rows = [_ROW.match(line) for line in text.partition("Summary by node type")[2].splitlines()]
    found = [row for row in rows if row]
    if total is None or not found:
        raise ConversionError("LiteRT's profiler tells no time by kind of operator.")
    seconds = int(total[1]) / 1e6 / calls
    times = [OperatorTime(row[1], int(row[2]), float(row[3]) / 100 * seconds) for row in found]
    return sorted(times, key=lambda time: -time.seconds)


def _buffers(
    lite: _LiteRT, environment: c_void_p, compiled: c_void_p, signature: c_void_p, role: str
) -> Any:
    """Makes the buffers of all inputs, or of all outputs, of the first signature."""
    count, first = c_size_t(), c_size_t(0)
    lite.call(f"LiteRtGetNumSignature{role}s", signature, byref(count))
    layouts = (ctypes.c_char * _LAYOUT_BYTES * count.value)()
    if role == "Output":
        layouts_of = "LiteRtGetCompiledModelOutputTensorLayouts"
        lite.call(layouts_of, compiled, first, count, layouts, c_bool(True))
    made = (c_void_p * count.value)()
    for index in range(count.value):
        place = c_size_t(index)
        if role == "Input":
            layout_of = "LiteRtGetCompiledModelInputTensorLayout"
            lite.call(layout_of, compiled, first, place, byref(layouts[index]))
        tensor = lite.make(f"LiteRtGetSignature{role}TensorByIndex", signature, place)
        kind = (ctypes.c_char * _TYPE_BYTES)()
        lite.call("LiteRtGetRankedTensorType", tensor, kind)
        ctypes.memmove(byref(kind, 4), layouts[index], _LAYOUT_BYTES)
        needs_of = f"LiteRtGetCompiledModel{role}BufferRequirements"
        needs = lite.make(needs_of, compiled, first, place)
        make = "LiteRtCreateManagedTensorBufferFromRequirements"
        made[index] = lite.make(make, environment, kind, needs).value
    return made


def _fill(lite: _LiteRT, buffer: c_void_p, array: "NDArray[Any]") -> None:
    size, memory = c_size_t(), c_void_p()
    lite.call("LiteRtGetTensorBufferSize", buffer, byref(size))
    if size.value < array.nbytes:
        raise ConversionError(
            f"LiteRT's profiler takes inputs of the sizes in the file. Received: {array.shape}, of "
            f"{array.nbytes} bytes in place of {size.value}."
        )
    lite.call("LiteRtLockTensorBuffer", buffer, byref(memory), _FOR_WRITING)
    ctypes.memmove(memory, array.tobytes(), array.nbytes)
    lite.call("LiteRtUnlockTensorBuffer", buffer)
