"""Looks into layers while their model is called: what they are given, and what they hand on.

Layers of nested models, and those inside other layers, have no tensor of the outer graph that could
be asked for; so methods of theirs are stood in for while the model is called or traced.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from exporter.graph.taps import replaced
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
