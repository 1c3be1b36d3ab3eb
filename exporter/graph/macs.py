"""Counts the multiply-accumulates of a Keras model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from exporter.graph.signature import Signature


def count_macs(signature: Signature) -> int:
    """Counts the multiply-accumulates of matrix products and convolutions, for one sample.

    They are read off the traced graph, so every kind of layer counts. Free sizes other than the
    batch are taken as ``FREE_SIZE``; the body of a loop (LSTM, GRU) is not counted.
    """
    import tensorflow as tf

    specs = {i.name: tf.TensorSpec(i.sample_shape, i.dtype) for i in signature.inputs}
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
