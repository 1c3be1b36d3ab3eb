"""What an artifact costs to run: multiply-accumulates and latency."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.formats import FORMATS
from exporter.formats.base import Format
from exporter.isolation import call_in_child
from exporter.lowrank.kernels import FREE_SIZE

ROUNDS = 7
ROUND_SECONDS = 0.12
WARM_UP_CALLS = 5


@dataclass(frozen=True)
class Latency:
    """Times of single calls of a runtime, one thread, batch 1.

    Attributes:
        p50: Median, in seconds.
        p90: 90th percentile, in seconds.
        calls: How many were timed.
    """

    p50: float
    p90: float
    calls: int


@dataclass(frozen=True)
class LatencyPair:
    """Baseline and compressed model in the same runtime, timed in turns.

    Attributes:
        baseline: Of the baseline's artifact.
        compressed: Of the compressed model's.
    """

    baseline: Latency
    compressed: Latency

    @property
    def speedup(self) -> float:
        """Ratio of the medians, baseline / compressed."""
        return self.baseline.p50 / self.compressed.p50


def measure_latency(
    fmt: Format, baseline: Path, compressed: Path, inputs: Mapping[str, Array], folder: Path
) -> LatencyPair:
    """Times two artifacts in turns, in a process of their own with one thread.

    Args:
        fmt: Their format.
        baseline: Artifact of the baseline.
        compressed: Artifact of the compressed model.
        inputs: One batch, by input name.
        folder: For the array that goes to the child.

    Raises:
        ChildError: If the runtime cannot run them.
    """
    file = folder / "latency.npz"
    np.savez(file, **inputs)  # type: ignore[arg-type]
    job = {
        "format": fmt.name,
        "inputs": str(file),
        "baseline": str(baseline),
        "compressed": str(compressed),
    }
    answer = call_in_child(f"{__name__}:_measure_here", job, fmt.thread_environment)
    return LatencyPair(Latency(**answer["baseline"]), Latency(**answer["compressed"]))


def _measure_here(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The child's part of ``measure_latency``."""
    fmt = FORMATS[job["format"]]
    with np.load(job["inputs"]) as loaded:
        inputs = {name: loaded[name] for name in loaded.files}
    calls = {
        name: fmt.load(Path(job[name]), fmt.backends[0], threads=1).prepare(inputs)
        for name in ("baseline", "compressed")
    }
    per_round = {name: _calls_per_round(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].extend(_time(call, per_round[name]))
    return {
        name: {
            "p50": statistics.median(seconds),
            "p90": float(np.quantile(seconds, 0.9)),
            "calls": len(seconds),
        }
        for name, seconds in times.items()
    }


def _calls_per_round(call: Callable[[], object]) -> int:
    seconds = statistics.median(_time(call, WARM_UP_CALLS))
    return max(3, min(2000, round(ROUND_SECONDS / max(seconds, 1e-9))))


def _time(call: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def count_macs(model: Any) -> int:
    """Counts the multiply-accumulates of matrix products and convolutions, for one sample.

    They are read off the traced graph, so every kind of layer counts. Free sizes other than the
    batch are taken as 32; the body of a loop (LSTM, GRU) is not counted.
    """
    import tensorflow as tf

    from exporter.formats.base import Signature

    signature = Signature(model)
    specs = {
        info.name: tf.TensorSpec(
            [info.fixed_batch or 1, *(size or FREE_SIZE for size in info.shape[1:])], info.dtype
        )
        for info in signature.inputs
    }
    function = tf.function(signature.__call__, autograph=False).get_concrete_function(**specs)
    graph = function.graph.as_graph_def(add_shapes=True)
    functions = {
        f.signature.name: _graph_macs(f.node_def, _argument_shapes(f))
        for f in graph.library.function
    }
    total = _graph_macs(graph.node, {})
    for node in graph.node:
        if node.op in {"PartitionedCall", "StatefulPartitionedCall"}:
            total += functions.get(node.attr["f"].func.name, 0)
    batch = next((info.fixed_batch for info in signature.inputs if info.fixed_batch), 1)
    return total // batch


def _argument_shapes(function: Any) -> dict[str, list[int]]:
    return {
        argument.name: _sizes(function.arg_attr[index].attr["_output_shapes"].list.shape[0])
        for index, argument in enumerate(function.signature.input_arg)
        if function.arg_attr[index].attr["_output_shapes"].list.shape
    }


def _sizes(shape: Any) -> list[int]:
    return [max(dim.size, 0) for dim in shape.dim]


def _graph_macs(nodes: Any, arguments: Mapping[str, list[int]]) -> int:
    """Sums over nodes; ``arguments`` are shapes of what comes from outside."""
    shapes = dict(arguments)
    for node in nodes:
        outputs = node.attr["_output_shapes"].list.shape
        if outputs:
            shapes[node.name] = _sizes(outputs[0])
    total = 0
    for node in nodes:
        count = _MACS.get(node.op)
        if count is not None:
            operands = [shapes.get(name.partition(":")[0].lstrip("^"), []) for name in node.input]
            total += count(node, operands, shapes.get(node.name, []))
    return total


def _matmul(node: Any, operands: list[list[int]], output: list[int]) -> int:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    inner = operands[0][-2 if transposed else -1]
    return math.prod(output) * inner


def _convolution(node: Any, operands: list[list[int]], output: list[int]) -> int:
    del node
    return math.prod(output) * math.prod(operands[1][:-1])


def _depthwise(node: Any, operands: list[list[int]], output: list[int]) -> int:
    del node
    return math.prod(output) * math.prod(operands[1][:2])


def _einsum(node: Any, operands: list[list[int]], output: list[int]) -> int:
    del output
    terms = node.attr["equation"].s.decode().partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        before, ellipsis, after = term.partition("...")
        head = dict(zip(before, shape, strict=False))
        tail = dict(zip(reversed(after), reversed(shape), strict=False))
        sizes |= head | tail
        if ellipsis:
            sizes["..."] = math.prod(shape[len(before) : len(shape) - len(after)])
    return math.prod(sizes.values())


_MACS: dict[str, Callable[[Any, list[list[int]], list[int]], int]] = {
    "MatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
}
