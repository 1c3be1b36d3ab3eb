"""Observes and replaces methods of layers while their model is called or traced.

Layers of nested models, and layers inside other layers, have no tensor in the outer graph that
could be asked for. So their methods are replaced for the time of a call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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

    def note(key: int, call: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        noted = calls.setdefault(key, [])
        result = call(*args, **kwargs)
        noted.append((next(iter((*args, *kwargs.values()))), result))
        return result

    distinct = {id(layer): layer for layer in layers}
    with replaced([(x, "call", partial(note, key, x.call)) for key, x in distinct.items()]):
        yield calls


@contextmanager
def watched(
    places: Iterable[tuple[Layer, Place | None]], tape: Any = None
) -> Iterator[dict[int, list[Tensor]]]:
    """Notes tensors of layers while the block runs, and has a ``tf.GradientTape`` watch them.

    Yields:
        A tensor for each call, by the identity of the layer; none where the place is None.
    """
    distinct = {id(layer): (layer, place) for layer, place in places}
    seen: dict[int, list[Tensor]] = {key: [] for key in distinct}

    def watching(layer: Layer, method: str) -> Callable[..., Tensor]:
        function = getattr(layer, method)

        def note(tensor: Tensor) -> Tensor:
            if tape is not None:
                tape.watch(tensor)
            seen[id(layer)].append(tensor)
            return tensor

        if method == "activation":
            return lambda inputs: function(note(inputs))
        return lambda *args, **kwargs: note(function(*args, **kwargs))

    methods = {"activation": "activation", "output": "call"}
    watches = [(layer, methods[place]) for layer, place in distinct.values() if place]
    with replaced([(layer, method, watching(layer, method)) for layer, method in watches]):
        yield seen


@contextmanager
def replaced(patches: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets attributes of layers or modules, such as ``call``, for the time of the block."""
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
