"""Knows the layers that loop over the steps of a sequence."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from exporter.errors import ModelError
from exporter.graph.hooks import replaced
from exporter.graph.layers import input_shape, with_parts
from exporter.graph.types import Layer, Model, Tensor


def loops(layers: Mapping[str, Layer]) -> Iterator[tuple[str, Layer]]:
    """Yields each layer that loops over steps, within wrappers too, and the first path to it."""
    import keras

    found: dict[int, tuple[str, Layer]] = {}  # Both a wrapper and what it wraps have paths.
    for path, layer in layers.items():
        for part in with_parts(layer):
            if isinstance(part, keras.layers.RNN):
                found.setdefault(id(part), (path, part))
    yield from found.values()


def refuse_stateful(layers: Mapping[str, Layer]) -> None:
    """Raises a ModelError for a layer that remembers the former batch, as no artifact does."""
    for path, part in loops(layers):
        if part.stateful:
            raise ModelError(
                f"Layer {path!r} is stateful: it keeps its states from one call to the next, which "
                "artifacts do not. Build it with stateful=False and return_state=True, and make "
                "its states inputs (initial_state) and outputs of the model."
            )


def loops_over_free_length(layers: Mapping[str, Layer]) -> list[str]:
    """Returns the paths of layers that loop over sequences whose length is free."""
    return sorted({path for path, _ in loops(layers) if input_shape(layers[path])[1] is None})


def count_steps(layers: Mapping[str, Layer]) -> int:
    """Counts the steps of all loops over sequences of a fixed length."""
    return sum(input_shape(layers[path])[1] or 0 for path, _ in loops(layers))


def unrolled(model: Model) -> AbstractContextManager[None]:
    """Has layers write out the steps of their loops while the block traces the model."""
    found = loops({layer.name: layer for layer in model.layers})
    return replaced([(part, "unroll", True) for _, part in found])


def replaced_loops(
    layers: Mapping[str, Layer], loop: Callable[[Layer, Tensor, list[Tensor]], list[Tensor] | None]
) -> AbstractContextManager[None]:
    """Has another function compute the loops of plain recurrent layers while the block runs.

    Layers keep their own loop where a mask skips steps.

    Args:
        layers: The leaves of a model by path.
        loop: Takes a layer, its sequences and its first states, none of which stands for zeros.
            Returns its outputs at every step, in the order of the input whatever the order in
            which the layer goes, and its last states; or None for the layer to do it.
    """
    import keras

    kinds = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    patches: list[tuple[Layer, str, Any]] = []
    flipped_outside: set[int] = set()
    for layer in layers.values():
        if type(layer) is keras.layers.Bidirectional and layer.return_sequences:
            # It would turn the outputs of this layer around, which come in the right order.
            patches.append((layer, "return_sequences", False))
            flipped_outside.update(map(id, with_parts(layer.backward_layer)))
    for _, part in loops(layers):
        if type(part) in kinds or id(part) in flipped_outside:
            own = loop if type(part) in kinds else None
            patches.append((part, "call", _call(part, own, in_order=id(part) in flipped_outside)))
    return replaced(patches)


def _call(layer: Layer, loop: Callable[..., list[Tensor] | None] | None, *, in_order: bool) -> Any:
    """Returns a stand-in for a method; with ``in_order``, outputs have the order of the input."""
    import keras

    original = layer.call

    def call(sequences: Tensor, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
        found = None
        if loop is not None and mask is None:
            states = [] if initial_state is None else keras.tree.flatten(initial_state)
            found = loop(layer, sequences, states)
        if found is None:
            result = original(sequences, initial_state=initial_state, mask=mask, **options)
            output, *states = result if layer.return_state else [result]
            in_time = not layer.go_backwards
        else:
            outputs, *states = found
            output, in_time = outputs if layer.return_sequences else states[0], True
        if layer.return_sequences and in_time != (in_order or not layer.go_backwards):
            output = keras.ops.flip(output, axis=1)
        return (output, *states) if layer.return_state else output

    return call
