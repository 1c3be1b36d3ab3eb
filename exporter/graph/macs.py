"""Counts the multiply-accumulates of a Keras model."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def count_macs(function: Any) -> int:
    """Counts the multiply-accumulates of matrix products and convolutions of a concrete function.

    They are read off the traced graph, so every kind of layer counts, and a loop as often as it
    runs.
    """
    graph = function.graph.as_graph_def(add_shapes=True)
    # Keras also traces the first step of a loop by itself, to see the shape of its result.
    needed = _needed(tensor.op for tensor in function.outputs)
    return _graph_macs(
        [node for node in graph.node if node.name in needed],
        {called.signature.name: called for called in graph.library.function},
        {op.name: _runs(op) for op in needed.values() if op.type in {"While", "StatelessWhile"}},
    )


def _needed(operations: Iterable[Any]) -> dict[str, Any]:
    """Returns operations and all that they depend on, by name."""
    found: dict[str, Any] = {}
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found[operation.name] = operation
            waiting += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    return found


def _runs(loop: Any) -> int:
    """Returns how often a loop runs at most; 1 if the graph does not tell it."""
    import tensorflow as tf

    limit = loop.inputs[1]  # The first input counts.
    if limit.op.type == "Max":  # Keras takes the largest of one number.
        limit = limit.op.inputs[0]
    value = tf.get_static_value(limit)
    return int(value) if value is not None and value.ndim == 0 and value > 0 else 1


def _shapes(attribute: Any) -> list[list[int]]:
    """Reads the shapes of the outputs of a node; none if the graph does not tell them."""
    return [[max(dim.size, 0) for dim in shape.dim] for shape in attribute.list.shape]


def _graph_macs(
    nodes: Iterable[Any],
    library: Mapping[str, Any],
    runs: Mapping[str, int],
    arguments: Mapping[str, list[list[int]]] | None = None,
) -> int:
    """Sums over nodes and the functions that they call; arguments of a function have shapes."""
    nodes = list(nodes)
    shapes = {**(arguments or {}), **{n.name: _shapes(n.attr["_output_shapes"]) for n in nodes}}

    def shape(name: str) -> list[int]:
        node, _, output = name.lstrip("^").partition(":")
        # Within a function the name of the output is in between.
        index, known = int(output.rpartition(":")[2] or 0), shapes.get(node, [])
        return known[index] if index < len(known) else []

    total = 0
    for node in nodes:
        if node.op in _MACS:
            operands = [shape(name) for name in node.input]
            total += _MACS[node.op](node, operands, shape(node.name))
        for attribute in ("f", "body"):
            called = library.get(node.attr[attribute].func.name)
            if called is not None:
                given = {
                    argument.name: _shapes(called.arg_attr[index].attr["_output_shapes"])
                    for index, argument in enumerate(called.signature.input_arg)
                }
                macs = _graph_macs(called.node_def, library, {}, given)
                total += macs * runs.get(node.name, 1)
    return total


def _matmul(node: Any, operands: list[list[int]], output: list[int]) -> int:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    inner = operands[0][-2 if transposed else -1]
    return math.prod(output) * inner


def _convolution(_: Any, operands: list[list[int]], output: list[int]) -> int:
    return math.prod(output) * math.prod(operands[1][:-1])


def _transposed(_: Any, operands: list[list[int]], __: list[int]) -> int:
    return math.prod(operands[2]) * math.prod(operands[1][:-1])


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
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
}
