"""Looks into layers while their model is called: what they are given, and what they hand on.

Layers of nested models, and those inside other layers, have no tensor of the outer graph that could
be asked for; so methods of theirs are stood in for while the model is called or traced.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from exporter.lowrank.kernels import Kernel

Kernels = Mapping[str, Kernel]


@contextmanager
def tapped(kernels: Kernels) -> Iterator[dict[int, list[Any]]]:
    """Notes the inputs of layers while the block runs, by the identity of the layer."""
    seen: dict[int, list[Any]] = {}

    def tap(layer: Any) -> Callable[..., Any]:
        call = layer.call

        def noting(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.setdefault(id(layer), []).append(inputs)
            return call(inputs, *args, **kwargs)

        return noting

    layers = {id(kernel.layer): kernel.layer for kernel in kernels.values()}.values()
    with replaced([(layer, "call", tap(layer)) for layer in layers]):
        yield seen


@contextmanager
def called(layers: Iterable[Any]) -> Iterator[dict[int, list[tuple[Any, Any]]]]:
    """Notes inputs and results of layers while the block runs, by the identity of the layer."""
    calls: dict[int, list[tuple[Any, Any]]] = {}

    def note(layer: Any) -> tuple[Any, str, Callable[..., Any]]:
        call, noted = layer.call, calls.setdefault(id(layer), [])

        def noting(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            result = call(inputs, *args, **kwargs)
            noted.append((inputs, result))
            return result

        return layer, "call", noting

    with replaced([note(layer) for layer in layers]):
        yield calls


@contextmanager
def watched(kernels: Kernels, tape: Any) -> Iterator[dict[int, list[Any]]]:
    """Notes what layers hand to their activation, or return where they have none, on a tape."""
    seen: dict[int, list[Any]] = {}

    def watch(layer: Any, function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        def watching(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tensor = inputs if before else function(inputs, *args, **kwargs)
            tape.watch(tensor)
            seen[id(layer)].append(tensor)
            return function(tensor) if before else tensor

        return watching

    patches = []
    for kernel in kernels.values():
        layer = kernel.layer
        if id(layer) in seen:
            continue
        seen[id(layer)] = []
        if kernel.gradient_at == "activation":
            patches.append((layer, "activation", watch(layer, layer.activation, before=True)))
        elif kernel.gradient_at == "output":
            patches.append((layer, "call", watch(layer, layer.call, before=False)))
    with replaced(patches):
        yield seen


@contextmanager
def substituted(layer: Any, replacement: Callable[..., Any]) -> Iterator[None]:
    """Has a model call something else in place of a layer while the block runs, eagerly."""
    with replaced([(layer, "call", replacement)]):
        yield


@contextmanager
def replaced(patches: Sequence[tuple[Any, str, Callable[..., Any] | None]]) -> Iterator[None]:
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
