"""Observes and replaces methods of layers while their model is called."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


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
