"""Walks the graphs of Keras models, and the layers inside other layers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from exporter.graph.chain import is_chain
from exporter.graph.layers import kind_of
from exporter.graph.signature import unique_name
from exporter.graph.types import Layer, Model, Variable


def walk(model: Model) -> Iterator[tuple[str, Layer]]:
    """Yields path and layer of every layer that is no graph; a shared layer is yielded once.

    Nested Sequential and Functional models are entered, and so are custom layers, subclassed
    models, and wrappers whose inner layers can be replaced; these are yielded first themselves.
    """
    for path, layer in _visit(model, "", set(), set()):
        if not is_graph(layer):
            yield path, layer


def _visit(
    owner: Layer, prefix: str, seen: set[int], taken: set[str]
) -> Iterator[tuple[str, Layer]]:
    for layer in parts(owner):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_chain(layer):
            yield from _visit(layer, prefix, seen, taken)
            continue
        # A layer may hold several of the same name.
        path = unique_name(f"{prefix}{layer.name}", taken)
        yield path, layer
        yield from _visit(layer, f"{path}/", seen, taken)


def parts(layer: Layer) -> list[Layer]:
    """Returns the layers directly inside a layer that can be replaced there."""
    if is_graph(layer):
        return list(layer.layers)
    return (
        []
        if is_of_keras(layer) and not kind_of(layer).entered
        else list(getattr(layer, "_layers", []))
    )


def is_of_keras(operation: Any) -> bool:
    """Tells whether a layer or operation is of a class of Keras itself."""
    return type(operation).__module__.partition(".")[0] == "keras"


def own_variables(layer: Layer) -> list[Variable]:
    """Returns the variables of a layer that are in none of its ``parts``."""
    inner = {id(variable) for part in parts(layer) for variable in part.variables}
    return [variable for variable in layer.variables if id(variable) not in inner]


def own_weights(layer: Layer) -> list[Variable]:
    """Returns the weights of a layer that are in none of its ``parts``."""
    own = set(map(id, own_variables(layer)))
    return [weight for weight in layer.weights if id(weight) in own]


def links(model: Model) -> Iterator[tuple[str, Layer, Layer]]:
    """Yields pairs of layers where the output of the first one goes to the second one alone.

    Both are called once, and the second one has no other input. Inner models are entered; a pair
    never has one layer inside a nested model and the other one outside of it.

    Yields:
        The path of the model that holds both, with a slash at its end, and the two layers.
    """
    graphs = list(_graphs(model))
    # A layer may be called in several graphs, or several times in one.
    times = Counter(id(node.operation) for _, nodes, _ in graphs for node in nodes)
    for prefix, nodes, outputs in graphs:
        consumed = [tensor for node in nodes for tensor in node.input_tensors]
        consumers = Counter(map(id, [*consumed, *outputs]))
        for node in nodes:
            if times[id(node.operation)] > 1 or len(node.input_tensors) != 1:
                continue
            (tensor,) = node.input_tensors
            source = tensor._keras_history.operation
            if consumers[id(tensor)] == 1 and times[id(source)] == 1:
                yield prefix, source, node.operation


def _graphs(model: Model) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yields path, calls and outputs of a model and of those nested in it."""
    inner = ((f"{path}/", layer) for path, layer in _visit(model, "", set(), set()))
    for prefix, layer in [("", model), *inner]:
        if is_graph(layer):
            graph, nodes = calls(layer)
            yield prefix, nodes, graph.outputs


def calls(model: Model) -> tuple[Model, list[Any]]:
    """Returns the Functional model of a graph, and its calls in the order in which it makes them.

    Layers list their calls in other graphs as well; a graph lists its own.
    """
    import keras

    graph = model._functional if isinstance(model, keras.Sequential) else model
    depths = sorted(graph._nodes_by_depth, reverse=True)
    return graph, [node for depth in depths for node in graph._nodes_by_depth[depth]]


def first_operations(model: Model) -> list[tuple[int, Any]]:
    """Returns the layers and operations that are given an input of a model, and its number."""
    _, nodes, _ = next(_graphs(model))
    numbers = {id(tensor): number for number, tensor in enumerate(model.inputs)}
    return [
        (numbers[id(tensor)], node.operation)
        for node in nodes
        for tensor in node.input_tensors
        if id(tensor) in numbers
    ]


def is_graph(layer: Layer) -> bool:
    """Tells whether a layer is a Sequential or Functional model that has been built."""
    import keras

    # Keras has no public name for the class of functional models; they alone list operations.
    return (
        isinstance(layer, keras.Model)
        and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))
        and bool(getattr(layer, "inputs", None))
    )
