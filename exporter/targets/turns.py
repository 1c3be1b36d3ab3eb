"""Times artifacts of any formats and origins in turns, each turn in a process of its own.

So the load time and the memory of an artifact are its own, and what one process has by chance, such
as the places of its pages, becomes part of the noise that is measured.
"""

import importlib
import os
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.data.tasks import shape_text
from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import Format, OperatorTime, measure
from exporter.graph.signature import TensorInfo
from exporter.graph.sizes import fixed_shapes
from exporter.isolation import MOST_USES, SLOWEST, call_in_child
from exporter.options.size import Size
from exporter.targets import latency

_PROFILED_CALLS = 50
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """An artifact, and how it is called.

    Attributes:
        size: Sizes of the axes, beside the batch, that it leaves free; None if it leaves none.
    """

    fmt: Format
    path: Path
    batch: int
    threads: int
    size: Size | None


@dataclass(frozen=True)
class Look:
    """What must be known of an artifact before it is called.

    Attributes:
        size: Bytes that it takes where it runs.
        batch: The batch size that it insists on; None if any will do.
        free: Whether it leaves axes free, beside the batch.
    """

    size: int
    batch: int | None
    free: bool


@dataclass(frozen=True)
class Turn:
    """What one process measured of a case.

    Attributes:
        load: Seconds from the path to the end of the first call.
        memory: Most resident bytes beyond those of the runtime alone; None where the system does
            not tell.
        times: Seconds of single calls.
    """

    load: float
    memory: int | None
    times: tuple[float, ...]


def look_at(fmt: Format, path: Path, size: Size | None) -> Look:
    """Reads the interface of an artifact in a process of its own, and draws a batch for it.

    Raises:
        ChildError: If it cannot be read.
        RecipeError: If no inputs can be drawn for it.
    """
    job = {"format": fmt.name, "path": str(path), "size": size}
    found = call_in_child(f"{__name__}:_look_here", job, fmt.imports, data=measure(path)[0])
    if "refused" in found:
        raise RecipeError(f"{str(path)!r}: {found['refused']}")
    return Look(**found)


def measure_turn(case: Case) -> Turn:
    """Opens an artifact and times its calls, for a moment, in a process of its own.

    Raises:
        ChildError: If the runtime cannot run it.
    """
    values = _call(case, "_measure_here", {"seconds": latency.ROUND_SECONDS})
    return Turn(values["load"], values["memory"], tuple(values["times"]))


def profile(case: Case) -> list[OperatorTime]:
    """Returns the time by kind of operator, the longest first.

    Raises:
        ChildError: If the runtime cannot run it, or has no profiler.
    """
    return [OperatorTime(**values) for values in _call(case, "_profile_here", {})]


def _call(case: Case, function: str, more: Mapping[str, Any]) -> Any:
    job = {
        "format": case.fmt.name,
        "path": str(case.path),
        "batch": case.batch,
        "threads": case.threads,
        "size": case.size,
        **more,
    }
    size = measure(case.path)[0]
    work = SLOWEST + MOST_USES * size * case.batch * 2 * _PROFILED_CALLS
    return call_in_child(f"{__name__}:{function}", job, case.fmt.imports, work=work, data=size)


def _look_here(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child of ``look_at``."""
    fmt, path = FORMATS[job["format"]], Path(job["path"])
    inputs, _ = fmt.read_interface(path)
    try:
        draw(inputs, 1, _size(job))
    except RecipeError as error:
        return {"refused": str(error)}
    free = any(None in info.shape[1:] for info in inputs)
    return {"size": fmt.size(path), "batch": fmt.fixed_batch(path), "free": free}


def _measure_here(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child of ``measure_turn``."""
    fmt, inputs = _set_up(job)
    for module in fmt.runtime:
        importlib.import_module(module)
    before = _resident("VmRSS")
    start = perf_counter()
    call = fmt.prepare(Path(job["path"]), inputs, job["threads"])
    call()
    load = perf_counter() - start
    timer = timeit.Timer(call)
    times = timer.repeat(latency.warmed_up(timer, job["seconds"]), number=1)
    after = _resident("VmHWM")
    memory = None if before is None or after is None else max(0, after - before)
    return {"load": load, "memory": memory, "times": times}


def _profile_here(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs in the child of ``profile``."""
    fmt, inputs = _set_up(job)
    found = fmt.profile(Path(job["path"]), inputs, job["threads"], _PROFILED_CALLS)
    return [vars(time) for time in found]


def _set_up(job: dict[str, Any]) -> tuple[Format, dict[str, Array]]:
    fmt = FORMATS[job["format"]]
    os.environ.update(dict.fromkeys(fmt.thread_environment, str(job["threads"])))
    return fmt, draw(fmt.read_interface(Path(job["path"]))[0], job["batch"], _size(job))


def _size(job: dict[str, Any]) -> Size | None:
    size = job["size"]
    if isinstance(size, dict):
        return {name: tuple(one) for name, one in size.items()}
    return size and tuple(size)


def draw(inputs: Sequence[TensorInfo], batch: int, size: Size | None) -> dict[str, Array]:
    """Draws a batch for an interface: noise, or zeros, which any vocabulary has, for integers.

    Raises:
        RecipeError: If axes are free that ``size`` does not fix, or an input holds no numbers.
    """
    free = any(None in info.shape[1:] for info in inputs)
    fixed = fixed_shapes(inputs, size) if free and size else {}
    rng, arrays = np.random.default_rng(0), {}
    for info in inputs:
        sample = fixed.get(info.name, info.shape[1:])
        # A scalar has no batch axis.
        shape = [n for n in (*(n or batch for n in info.shape[:1]), *sample) if n is not None]
        if missing := sample.count(None):
            raise RecipeError(
                f"Input {info.name!r} of shape {shape_text(info.shape)} has free axes beside the "
                f"batch. Give their sizes, such as --size {','.join(['96'] * missing)}."
            )
        try:
            dtype = np.dtype(info.dtype)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind not in "fiub":
            raise RecipeError(f"Inputs must be numbers. Received: {info.name!r} of {info.dtype}.")
        real = dtype.kind == "f" or info.quantization
        arrays[info.name] = rng.normal(size=shape) if real else np.zeros(shape)
        if not info.quantization:  # The runner turns real numbers into its integers.
            arrays[info.name] = arrays[info.name].astype(dtype)
    return arrays


def _resident(name: str) -> int | None:
    """Returns bytes of resident memory of this process; None where the system does not tell.

    ``VmRSS`` are those now, from which the peak, ``VmHWM``, is counted anew.
    """
    if not _STATUS.exists():
        return None
    if name == "VmRSS":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Sets the peak to what there is now.
        except OSError:  # A container may forbid it.
            return None
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
