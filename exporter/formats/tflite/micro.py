"""Runs flatbuffers in TensorFlow Lite for Microcontrollers, on this machine."""

import math
import os
import re
import tempfile
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.disk import scratch_folder
from exporter.errors import ConversionError
from exporter.formats.base import to_real, to_stored
from exporter.formats.batches import batch_of
from exporter.formats.flatbuffers import ALIGNMENT
from exporter.formats.tflite.flatbuffer import read_interface
from exporter.formats.tflite.packing import pack, replace_select, unpack
from exporter.formats.variants import FLOAT32, INT8
from exporter.graph.signature import Tensors
from exporter.isolation import ChildError, call_in_child

MICRO_VARIANTS = frozenset({FLOAT32, INT8})
"""It runs neither float16, nor kernels with weights of integers for real inputs."""

_LACKING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")


class MicroRunner:
    """A flatbuffer opened in TFLite Micro; batches must be of its own size."""

    def __init__(self, content: bytes, arena_bytes: int) -> None:
        """Opens the flatbuffer, with ``arena_bytes`` of memory for tensors and operators."""
        from tflite_micro import runtime

        self._inputs, self._outputs = read_interface(content)
        self._interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        self.prepare(inputs)()
        get = self._interpreter.get_output
        outputs = {info.name: get(index) for index, info in enumerate(self._outputs)}
        return to_real(outputs, self._outputs)

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch; see the protocol."""
        arrays = to_stored(inputs, self._inputs)

        def run() -> None:
            # Set each time: the interpreter uses the memory of inputs for activations.
            for index, info in enumerate(self._inputs):
                self._interpreter.set_input(arrays[info.name], index)
            self._interpreter.invoke()

        return run


def adapted(content: bytes) -> bytes:
    """Returns an equivalent flatbuffer for TFLite Micro, without the names and metadata in it.

    Flash is scarce, and the signature still names inputs and outputs.
    """
    model = unpack(content)
    replace_select(model)
    model.description = None
    for entry in model.metadata or ():
        model.buffers[entry.buffer].data = None
    model.metadata = None
    for graph in model.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            tensor.name = None
    return pack(model)


def measure_arena(content: bytes) -> int:
    """Finds the least arena that TFLite Micro can run a flatbuffer in, in bytes.

    It is measured with the reference kernels in a 64-bit process, where pointers are twice as long
    as on most microcontrollers.

    Raises:
        ConversionError: If TFLite Micro cannot run it; the message names an operator that it lacks.
    """
    with scratch_folder() as folder:
        file = folder / "model.tflite"
        file.write_bytes(content)
        try:
            # In a child, for a model that TFLite Micro cannot run may crash it.
            size = len(content)
            answer = call_in_child(
                # It is run for each arena that is tried, some twenty.
                f"{__name__}:_measure_here",
                {"path": str(file)},
                work=2e4 * size,
                data=size,
            )
        except ChildError as error:
            raise ConversionError(f"TFLite Micro cannot run the model: {error}") from error
    if isinstance(answer, int):
        return answer
    if lacking := _LACKING.search(answer):
        # A free batch is computed with, by operators that a fixed one needs not.
        advice = "" if batch_of(read_interface(content)[0]) else ", fix the batch by --batch 1"
        raise ConversionError(
            f"TFLite Micro has no operator {lacking[1]}, which the model needs. Replace the layer "
            f"or the activation{advice}, or do without TFLite Micro."
        )
    raise ConversionError(f"TFLite Micro cannot run the model: {' '.join(answer.split())}")


def _measure_here(job: dict[str, Any]) -> int | str:
    """Runs in the child of ``measure_arena``; returns the bytes, or why the model cannot run."""
    import numpy as np

    content = Path(job["path"]).read_bytes()
    inputs, _ = read_interface(content)
    zeros = {info.name: np.zeros([n or 1 for n in info.shape], info.dtype) for info in inputs}

    def run(arena_bytes: int) -> None:
        # Some kernels find out no sooner than now that they lack an element type.
        MicroRunner(content, arena_bytes)(zeros)

    # More than any arena needs, as if no two tensors, nor constants, shared it.
    tensors = [tensor for graph in unpack(content).subgraphs for tensor in graph.tensors]
    ample = 2**20 + ALIGNMENT * sum(math.prod(map(int, tensor.shape)) for tensor in tensors)
    if (refusal := _refusal(partial(run, ample))) is not None:
        return refusal
    sizes = range(0, ample, ALIGNMENT)
    count = bisect_left(sizes, True, key=lambda size: _succeeds(partial(run, size)))
    return count * ALIGNMENT


def _succeeds(action: Callable[[], object]) -> bool:
    """Tells whether an action succeeds in a process of its own.

    Kernels do not check whether they got the memory that they asked for, and crash without it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _refusal(action: Callable[[], object]) -> str | None:
    """Returns the message that TFLite Micro prints if an action fails; None if it succeeds."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            action()
        except RuntimeError as error:  # Tells less than the printed message.
            file.seek(0)
            return file.read().decode(errors="replace").strip() or str(error)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return None
