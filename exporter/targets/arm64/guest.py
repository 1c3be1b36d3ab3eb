"""Runs inside QEMU: calls each .tflite file that is named, with a mark before and after.

The marks of file number n have the tags 2n and 2n + 1; those of -1 and -2 enclose nothing. Only the
aarch64 packages that ``scripts/arm64`` laid out are there, and not this package.
"""

import ctypes
import gc
import sys
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert

MARK = 0x5A5A
WARM_UP_CALLS = 2
"""The first call packs weights."""


def opened(path: str) -> Any:
    """Opens a flatbuffer on noise, as a batch of one sample."""
    model = litert.Interpreter(model_path=path, num_threads=1)
    details = model.get_input_details()
    for detail in details:
        signed = detail["shape_signature"]
        shape = [max(1, int(size)) for size in (signed if len(signed) else detail["shape"])]
        model.resize_tensor_input(detail["index"], shape)
    model.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in model.get_input_details():
        dtype = np.dtype(detail["dtype"])
        if dtype.kind == "f":
            values = rng.standard_normal(detail["shape"])
        elif detail["quantization"][0]:
            limits = np.iinfo(dtype)
            values = rng.integers(limits.min, limits.max + 1, detail["shape"])
        else:  # Indices, which must be within a table.
            values = np.zeros(detail["shape"])
        model.set_tensor(detail["index"], np.asarray(values, dtype))
    return model


def main() -> None:
    """Calls the files that the command line names."""
    mark = ctypes.CDLL(None).syscall
    gc.disable()
    mark(MARK, -1)
    mark(MARK, -2)
    for number, path in enumerate(sys.argv[1:]):
        model = opened(path)
        invoke = model._interpreter.Invoke  # Without the checks of the Python class.
        for _ in range(WARM_UP_CALLS):
            invoke()
        mark(MARK, 2 * number)
        invoke()
        mark(MARK, 2 * number + 1)


if __name__ == "__main__":
    main()
