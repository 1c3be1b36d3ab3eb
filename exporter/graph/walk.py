"""Walks the graphs of Keras models."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from exporter.graph.types import Layer, Model


def walk(model: Model) -> Iterator[tuple[str, Layer]]:
    """Yields path and layer of every leaf of the graph; a shared layer is yielded once.

    Nested Sequential and Functional models are entered; wrapper layers are leaves.
    """
    yield from _walk(model, "", set())


def _walk(model: Model, prefix: str, seen: set[int]) -> Iterator[tuple[str, Layer]]:
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_graph(layer):
            yield from _walk(layer, f"{prefix}{layer.name}/", seen)
        else:
            yield f"{prefix}{layer.name}", layer


def links(model: Model) -> Iterator[tuple[str, Layer, Layer]]:
    """Yields pairs of layers where the output of the first one goes to the second one alone.

    Both are called once, and the second one has no other input. Nested models are entered; a pair
    never has one layer inside a nested model and the other one outside of it.

    Yields:
        The path of the model that holds both, with a slash at its end, and the two layers.
    """
    graphs = list(_graphs(model, ""))
    # A layer may be called in several graphs, or several times in one.
    calls = Counter(id(node.operation) for _, nodes, _ in graphs for node in nodes)
    for prefix, nodes, outputs in graphs:
        consumed = [tensor for node in nodes for tensor in node.input_tensors]
        consumers = Counter(map(id, [*consumed, *outputs]))
        for node in nodes:
            if calls[id(node.operation)] > 1 or len(node.input_tensors) != 1:
                continue
            (tensor,) = node.input_tensors
            source = tensor._keras_history.operation
            if consumers[id(tensor)] == 1 and calls[id(source)] == 1:
                yield prefix, source, node.operation


def _graphs(model: Model, prefix: str) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yields path, calls and outputs of a model and of those nested in it."""
    import keras

    graph = model._functional if isinstance(model, keras.Sequential) else model
    # Layers list their calls in other graphs as well; a graph lists its own.
    yield (
        prefix,
        [node for nodes in graph._nodes_by_depth.values() for node in nodes],
        graph.outputs,
    )
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graphs(layer, f"{prefix}{layer.name}/")


def first_operations(model: Model) -> list[Any]:
    """Returns the layers and operations that are given an input of a model."""
    _, nodes, _ = next(_graphs(model, ""))
    inputs = {id(tensor) for tensor in model.inputs}
    return [n.operation for n in nodes if inputs & {id(tensor) for tensor in n.input_tensors}]


def is_graph(layer: Layer) -> bool:
    """Tells whether a layer is a Sequential or Functional model."""
    import keras

    # Keras has no public name for the class of functional models; they alone list operations.
    return isinstance(layer, keras.Model) and (
        isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    )
