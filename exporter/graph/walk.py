"""Walks the graphs of Keras models."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from exporter.errors import ModelError


def check_rewritable(model: Any) -> None:
    """Checks that the model is a graph of layers that can be walked and copied.

    Raises:
        ModelError: If it is not a built Sequential or Functional Keras model.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise ModelError(f"A Keras model is required. Received: {type(model).__name__}.")
    if not is_graph(model):
        raise ModelError(
            f"A Sequential or Functional model is required, whose graph can be rewritten. "
            f"Received: the subclassed model {type(model).__name__}. Rebuild it as "
            "keras.Model(inputs, outputs)."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ModelError(
            f"Model {model.name!r} has not been built, so the shapes of its weights are unknown. "
            "Give it a keras.Input, or call model.build(input_shape)."
        )
    for name, layer in walk(model):
        if isinstance(layer, keras.Model):
            raise ModelError(
                f"The nested model {name!r} must be Sequential or Functional. "
                f"Received: the subclassed model {type(layer).__name__}."
            )


def walk(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the path and the layer of every leaf of the graph, shared ones once.

    Nested Sequential and Functional models are entered; wrapper layers are leaves.
    """
    yield from _walk(model, "", set())


def _walk(model: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_graph(layer):
            yield from _walk(layer, f"{prefix}{layer.name}/", seen)
        else:
            yield f"{prefix}{layer.name}", layer


def links(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields pairs of operations of which the second one alone is given what the first one makes.

    Both are called once, and the second one is given nothing else. Nested models are entered; what
    crosses their bounds makes no pair.

    Returns:
        The path that the names are within, up to the last slash, and the operations.
    """
    graphs = list(_graphs(model, ""))
    # A layer may be called in several graphs, or several times in one.
    calls = Counter(id(node.operation) for _, graph in graphs for node in _nodes(graph))
    for prefix, graph in graphs:
        consumers = Counter(id(tensor) for node in _nodes(graph) for tensor in node.input_tensors)
        consumers.update(id(tensor) for tensor in graph.outputs)
        for node in _nodes(graph):
            if calls[id(node.operation)] > 1 or len(node.input_tensors) != 1:
                continue
            (tensor,) = node.input_tensors
            source = tensor._keras_history.operation
            if consumers[id(tensor)] == 1 and calls[id(source)] == 1:
                yield prefix, source, node.operation


def _graphs(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the functional graph of a model and of those nested in it, with their path."""
    import keras

    yield prefix, model._functional if isinstance(model, keras.Sequential) else model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graphs(layer, f"{prefix}{layer.name}/")


def _nodes(graph: Any) -> list[Any]:
    """Returns the calls that belong to a graph; its layers may have been called in others too."""
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes]


def is_graph(layer: Any) -> bool:
    """Tells whether a layer is a Sequential or Functional model."""
    import keras

    # Keras has no public name for the class of functional models; they alone list operations.
    return isinstance(layer, keras.Model) and (
        isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    )
