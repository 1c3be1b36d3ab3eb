"""Observes and replaces methods of layers while their model is called or traced.

Layers of nested models, and those inside other layers, have no tensor of the outer graph that could
be asked for. So their methods are replaced for the time of a call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from exporter.graph.types import Layer, Tensor

Place = Literal["activation", "output"]
"""Where a tensor is watched: as a layer hands it to its ``activation``, or as it returns it."""


@contextmanager
def called(layers: Iterable[Layer]) -> Iterator[dict[int, list[tuple[Tensor, Tensor]]]]:
    """Notes inputs and results of layers while the block runs.

    Yields:
        A pair for each call, by the identity of the layer, in the order of the first calls.
    """
    calls: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def noting(layer: Layer) -> Callable[..., Tensor]:
        call = layer.call

        def note(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            noted = calls.setdefault(id(layer), [])
            result = call(inputs, *args, **kwargs)
            noted.append((inputs, result))
            return result

        return note

    distinct = {id(layer): layer for layer in layers}.values()
    with replaced([(layer, "call", noting(layer)) for layer in distinct]):
        yield calls


@contextmanager
def watched(
    places: Iterable[tuple[Layer, Place | None]], tape: Any
) -> Iterator[dict[int, list[Tensor]]]:
    """Watches tensors of layers on a gradient tape while the block runs.

    Args:
        places: Layers, each with what is watched of it; None watches nothing.
        tape: A ``tf.GradientTape``.

    Yields:
        A tensor for each call, by the identity of the layer.
    """
    seen: dict[int, list[Tensor]] = {}

    def watching(layer: Layer, place: Place) -> Callable[..., Tensor]:
        function = layer.activation if place == "activation" else layer.call

        def watch(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            before = place == "activation"
            tensor = inputs if before else function(inputs, *args, **kwargs)
            tape.watch(tensor)
            seen[id(layer)].append(tensor)
            return function(tensor) if before else tensor

        return watch

    patches = []
    for layer, place in {id(layer): (layer, place) for layer, place in places}.values():
        seen[id(layer)] = []
        if place is not None:
            method = "activation" if place == "activation" else "call"
            patches.append((layer, method, watching(layer, place)))
    with replaced(patches):
        yield seen


@contextmanager
def substituted(layer: Layer, replacement: Callable[..., Tensor]) -> Iterator[None]:
    """Has a model call something else in place of a layer while the block runs, eagerly."""
    with replaced([(layer, "call", replacement)]):
        yield


@contextmanager
def replaced(patches: Sequence[tuple[Layer, str, Callable[..., Any] | None]]) -> Iterator[None]:
    """Sets attributes of layers for the time of the block."""
    missing = object()
    former = [(layer, name, vars(layer).get(name, missing)) for layer, name, _ in patches]
    try:
        for layer, name, value in patches:
            object.__setattr__(layer, name, value)
        yield
    finally:
        for layer, name, value in former:
            if value is missing:
                object.__delattr__(layer, name)
            else:
                object.__setattr__(layer, name, value)
