"""TensorFlow Lite for Microcontrollers: flatbuffers run by its interpreter on this machine."""

import math
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError
from exporter.formats.base import Runner
from exporter.formats.tflite.flatbuffer import read_interface
from exporter.formats.tflite.packing import pack, replace_select, unpack
from exporter.graph.signature import TensorInfo, Tensors, split
from exporter.isolation import ChildError, call_in_child

ALIGNMENT = 16
"""Of the model and of the arena, in bytes."""

_LACKING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")


class MicroRunner:
    """A flatbuffer opened in TFLite Micro; batches must be of its own size."""

    def __init__(self, content: bytes, arena_bytes: int) -> None:
        """Opens the flatbuffer.

        Args:
            content: The flatbuffer.
            arena_bytes: Memory for tensors, and for what operators keep.
        """
        from tflite_micro import runtime

        self._inputs, self._outputs = read_interface(content)
        self._interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        self.prepare(inputs)()
        return {
            info.name: _in_reals(self._interpreter.get_output(index), info)
            for index, info in enumerate(self._outputs)
        }

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch; see the protocol."""
        arrays = [_as_stored(inputs[info.name], info) for info in self._inputs]

        def run() -> None:
            # Every time, for the memory of inputs is used again for activations.
            for index, array in enumerate(arrays):
                self._interpreter.set_input(array, index)
            self._interpreter.invoke()

        return run


def _as_stored(array: Any, info: TensorInfo) -> Any:
    from exporter.quantization.affine import to_integers

    if info.quantization is None:
        return array.astype(info.dtype)
    return to_integers(array, info.quantization, info.dtype)


def _in_reals(array: Any, info: TensorInfo) -> Any:
    from exporter.quantization.affine import to_reals

    return array if info.quantization is None else to_reals(array, info.quantization)


class BatchByBatch:
    """Feeds a runner that takes batches of one size alone."""

    def __init__(self, runner: Runner, size: int) -> None:
        self._runner, self._size = runner, size

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts any number of whole batches."""
        import numpy as np

        results = [self._runner(batch) for batch in split(inputs, self._size)]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds any number of whole batches; see the protocol."""
        calls = [self._runner.prepare(batch) for batch in split(inputs, self._size)]

        def run() -> None:
            for call in calls:
                call()

        return run


def adapted(content: bytes) -> bytes:
    """Returns a flatbuffer as TFLite Micro runs it: of its operators, and without what it ignores.

    It computes the same.
    """
    model = unpack(content)
    replace_select(model)
    _drop_ignored(model)
    return pack(model)


def _drop_ignored(model: Any) -> None:
    """Drops names and metadata, for flash is scarce; the signature names inputs and outputs."""
    model.description = None
    for entry in model.metadata or ():
        model.buffers[entry.buffer].data = None
    model.metadata = None
    for graph in model.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            tensor.name = None


def measure_arena(content: bytes) -> int:
    """Finds the least arena that TFLite Micro can run a flatbuffer in, in bytes.

    It is measured with the reference kernels in a 64-bit process, where pointers are twice as long
    as on most microcontrollers.

    Raises:
        ConversionError: If TFLite Micro cannot run it; the message names an operator that it lacks.
    """
    with tempfile.TemporaryDirectory(prefix="exporter-") as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(content)
        try:
            # In a child, for what TFLite Micro cannot run may crash it.
            answer = call_in_child(f"{__name__}:_measure_here", {"path": str(file)})
        except ChildError as error:
            raise ConversionError(f"TFLite Micro cannot run the model: {error}") from error
    refusal = answer["refusal"]
    if refusal is None:
        return int(answer["arena_bytes"])
    lacking = _LACKING.search(refusal)
    if lacking is None:
        raise ConversionError(f"TFLite Micro cannot run the model: {' '.join(refusal.split())}")
    raise ConversionError(
        f"TFLite Micro has no operator {lacking[1]}, which the model needs. Replace the layer or "
        "the activation, or export to tflite."
    )


def _measure_here(job: dict[str, Any]) -> dict[str, Any]:
    """The child's part of ``measure_arena``."""
    import numpy as np

    content = Path(job["path"]).read_bytes()
    zeros = {
        info.name: np.zeros([size or 1 for size in info.shape], info.dtype)
        for info in read_interface(content)[0]
    }

    def run(arena_bytes: int) -> None:
        # Some kernels find out no sooner than now that they lack an element type.
        MicroRunner(content, arena_bytes)(zeros)

    low, high = 0, _ample_arena(content)
    refusal = _refusal(partial(run, high))
    if refusal is not None:
        return {"arena_bytes": None, "refusal": refusal}
    while high - low > ALIGNMENT:
        middle = (low + high) // 2 // ALIGNMENT * ALIGNMENT
        low, high = (low, middle) if _succeeds(partial(run, middle)) else (middle, high)
    return {"arena_bytes": high, "refusal": None}


def _ample_arena(content: bytes) -> int:
    """Returns more bytes than any arena needs, as if no two tensors, nor constants, shared it."""
    model = unpack(content)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    elements = sum(math.prod(map(int, tensor.shape)) for tensor in tensors)
    return 2**20 + ALIGNMENT * elements


def _succeeds(action: Callable[[], object]) -> bool:
    """Tells whether an action succeeds in a process of its own.

    Kernels do not check that they got the memory that they asked for, and crash without.
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
    """Returns what TFLite Micro prints if an action fails; None if it does not."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            action()
        except RuntimeError as error:  # Says no more than that.
            file.seek(0)
            return file.read().decode(errors="replace").strip() or str(error)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return None
