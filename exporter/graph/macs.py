"""Counts the multiply-accumulates of a Keras model."""

import math
from collections.abc import Callable
from typing import Any

from exporter.graph.signature import Signature


def count_macs(signature: Signature) -> int:
    """Counts the multiply-accumulates of matrix products and convolutions, for the smallest batch.

    They are read off the traced graph, so every kind of layer counts. Free sizes other than the
    batch are taken as ``FREE_SIZE``; the body of a loop (LSTM, GRU) is not counted.
    """
    import tensorflow as tf

    specs = {i.name: tf.TensorSpec(i.sample_shape, i.dtype) for i in signature.inputs}
    function = tf.function(signature.__call__, autograph=False).get_concrete_function(**specs)
    graph = function.graph.as_graph_def(add_shapes=True)
    functions = {}
    for called in graph.library.function:
        arguments = {
            argument.name: _shape(called.arg_attr[index])
            for index, argument in enumerate(called.signature.input_arg)
        }
        functions[called.signature.name] = _graph_macs(called.node_def, arguments)
    calls = [
        node for node in graph.node if node.op in {"PartitionedCall", "StatefulPartitionedCall"}
    ]
    called_macs = sum(functions.get(node.attr["f"].func.name, 0) for node in calls)
    return _graph_macs(graph.node, {}) + called_macs


def _shape(node: Any) -> list[int]:
    """Reads the shape of a node's first output; empty if the graph does not tell it."""
    return [max(dim.size, 0) for s in node.attr["_output_shapes"].list.shape[:1] for dim in s.dim]


def _graph_macs(nodes: Any, arguments: dict[str, list[int]]) -> int:
    """Sums over nodes; ``arguments`` are the shapes of the arguments of their function."""
    shapes = arguments | {node.name: _shape(node) for node in nodes}
    total = 0
    for node in nodes:
        if node.op in _MACS:
            operands = [shapes.get(name.partition(":")[0].lstrip("^"), []) for name in node.input]
            total += _MACS[node.op](node, operands, shapes[node.name])
    return total


def _matmul(node: Any, operands: list[list[int]], output: list[int]) -> int:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    inner = operands[0][-2 if transposed else -1]
    return math.prod(output) * inner


def _convolution(_: Any, operands: list[list[int]], output: list[int]) -> int:
    return math.prod(output) * math.prod(operands[1][:-1])


def _depthwise(_: Any, operands: list[list[int]], output: list[int]) -> int:
    return math.prod(output) * math.prod(operands[1][:2])


def _einsum(node: Any, operands: list[list[int]], _: list[int]) -> int:
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
