"""Finds operators of a flatbuffer that stay in float32, since integers would spoil them."""

from collections.abc import Iterator
from typing import Any

from exporter.formats.tflite.packing import SUMMING, constant, name_of, type_name
from exporter.formats.variants import FLOAT32

_ELEMENTWISE = ("ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "RESHAPE", "EXPAND_DIMS", "TRANSPOSE")
_FAR_OFF = 1e4
"""Magnitude from which on a constant of an elementwise operator is no number of the data's."""

_IN_CELLS = ("ADD", "LOGISTIC", "MUL", "RELU", "SPLIT", "STRIDED_SLICE", "SUB", "TANH")


def spoiled_by_integers(model: Any, graph: Any, bits: int) -> Iterator[Any]:
    """Yields operators of a subgraph that integer activations of so many bits would spoil."""
    yield from _before_indices(model, graph)
    yield from _masking(model, graph)
    if bits == 8:
        yield from _of_cells(model, graph)


def _before_indices(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators whose results become integers, as the index of a category does.

    Rounded to a step, and then cut, it would be another index.
    """
    floats = {i for i, tensor in enumerate(graph.tensors) if type_name(tensor) == FLOAT32}
    wanted: set[int] = set()
    for operator in reversed(graph.operators):
        name = name_of(model, operator)
        if name == "CAST" and operator.outputs[0] not in floats:
            wanted.update(operator.inputs)
        elif name not in ("CAST", *SUMMING) and wanted & floats & set(operator.outputs):
            wanted.update(operator.inputs)
            yield operator


def _masking(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators that mask logits by a number far off, until a softmax takes them.

    The number would have a scale of its own, or share one, in which the logits are a single step.
    """
    import numpy as np

    masked: set[int] = set()
    for operator in graph.operators:
        if name_of(model, operator) not in _ELEMENTWISE:
            continue
        given = [constant(model, graph.tensors[index]) for index in operator.inputs]
        far = any(x is not None and np.abs(x).max(initial=0) >= _FAR_OFF for x in given)
        if far or masked & set(operator.inputs):
            masked.update(operator.outputs)
            yield operator


def _of_cells(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators that make the states of recurrent layers of the products of each step.

    Their errors add up from step to step, and a small state falls on few of the 256 steps that
    integers have for a tanh. A trained LSTM of 16 units went from 10 to 20 dB.
    """
    products: dict[int, list[Any]] = {}
    for operator in graph.operators:
        if name_of(model, operator) in SUMMING:
            products.setdefault(graph.tensors[operator.inputs[1]].buffer, []).append(operator)
    results: set[int] = set()
    for first, *others in products.values():
        after = set(first.outputs)
        for operator in graph.operators if others else ():
            if after & set(operator.inputs):
                after.update(operator.outputs)
        if any(after & set(other.inputs) for other in others):
            results.update(each.outputs[0] for each in (first, *others))
    for operator in graph.operators:
        if results & set(operator.inputs) and name_of(model, operator) in _IN_CELLS:
            results.update(operator.outputs)
            yield operator
