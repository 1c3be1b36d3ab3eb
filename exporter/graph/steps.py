"""Calls a model on the same batches in several steps, each of which starts where the last ended."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from exporter.graph.layers import with_parts
from exporter.graph.signature import Signature
from exporter.graph.types import Layer, Tensor
from exporter.graph.walk import calls

MAX_KEPT = 2**29
"""Most bytes that a model keeps between two steps; where it takes more, calls are made again."""

Tensors = Mapping[str, Tensor]


class Steps:
    """The calls of a model's outer graph, in their order.

    A step makes the calls up to some place, and keeps for each batch what the calls after another
    place need. So no layer need be called, or traced, in every step.
    """

    def __init__(self, signature: Signature, load: Callable[[int], Any], count: int) -> None:
        """Prepares the first step, which starts at the inputs.

        Args:
            signature: The model.
            load: Returns the arrays of a batch, by name.
            count: The number of batches.
        """
        self._graph, self._nodes = calls(signature.model)
        self._signature, self._load, self._count = signature, load, count
        self._start, self._tensors = 0, list(self._graph.inputs)
        self._kept: list[Tensors] = []
        self._places: dict[int, list[int]] = {}
        for place, node in enumerate(self._nodes):
            for layer in _layers(node.operation):
                self._places.setdefault(id(layer), []).append(place)

    def places(self, layer: Layer) -> range:
        """Returns the places from the first call that calls a layer to the last one."""
        found = self._places.get(id(layer), [])
        return range(found[0], found[-1] + 1) if found else range(0)

    def run(
        self, stop: int, keep: int, observe: Callable[[Callable[[], None]], Tensors]
    ) -> Iterator[Tensors]:
        """Calls the model on every batch, from where the last step ended.

        Args:
            stop: The place before which it stops.
            keep: The place where the next step starts, at most ``stop``.
            observe: Is given the function that makes the calls, and returns what is yielded.
        """
        import tensorflow as tf

        start, tensors = self._start, self._tensors
        needed = self._needed(keep) if keep > start else []

        def step(given: Tensors) -> tuple[Tensors, Tensors]:
            known = _unpack(given, tensors)
            seen = observe(lambda: self._call(start, stop, known))
            return seen, _pack(known, needed)

        first, last = self._batch(0), self._batch(self._count - 1)
        specs = {name: relaxed(tensor, last[name]) for name, tensor in first.items()}
        function = tf.function(step, autograph=False).get_concrete_function(specs)
        kept: list[Tensors] = []
        for number in range(self._count):
            seen, packed = function(self._batch(number))
            yield seen
            if self._count * sum(map(_bytes, packed.values())) <= MAX_KEPT:
                kept.append(packed)
        if keep > start and len(kept) == self._count:
            self._start, self._tensors, self._kept = keep, needed, kept

    def _needed(self, keep: int) -> list[Tensor]:
        """Returns what is known at a place, and taken by calls after it."""
        made = [tensor for node in self._nodes[self._start : keep] for tensor in node.outputs]
        known = {id(tensor) for tensor in (*self._tensors, *made)}
        taken = {id(t): t for node in self._nodes[keep:] for t in node.input_tensors}
        return [tensor for key, tensor in taken.items() if key in known]

    def _batch(self, number: int) -> Tensors:
        if self._start:
            return self._kept[number]
        tensors = self._signature.tensors(self._load(number))
        values = self._graph._standardize_inputs(self._signature.structured(tensors))
        symbolic = self._graph.inputs
        return _pack({id(t): x for t, x in zip(symbolic, values, strict=True)}, symbolic)

    def _call(self, start: int, stop: int, known: dict[int, Tensor]) -> None:
        import keras

        for node in self._nodes[start:stop]:
            if node.is_input or not all(id(tensor) in known for tensor in node.input_tensors):
                continue
            args, kwargs = node.arguments.fill_in(known)
            if "training" in getattr(node.operation, "_call_context_args", ()):
                kwargs["training"] = False
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            known.update(zip(map(id, node.outputs), outputs, strict=True))


def relaxed(first: Tensor, last: Tensor) -> Any:
    """Returns the specification of a tensor in all batches; the last one may be smaller."""
    import tensorflow as tf

    sizes = zip(first.shape, last.shape, strict=True)
    return tf.TensorSpec([size if size == other else None for size, other in sizes], first.dtype)


def _layers(operation: Any) -> list[Layer]:
    import keras

    return with_parts(operation) if isinstance(operation, keras.Layer) else []


def _bytes(tensor: Tensor) -> int:
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size)


def _pack(known: Mapping[int, Tensor], symbolic: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns the values of symbolic tensors, with their masks."""
    packed: dict[str, Tensor] = {}
    for number, value in enumerate(known[id(tensor)] for tensor in symbolic):
        mask = getattr(value, "_keras_mask", None)
        packed |= {f"value{number}": value} | ({} if mask is None else {f"mask{number}": mask})
    return packed


def _unpack(packed: Tensors, symbolic: Iterable[Tensor]) -> dict[int, Tensor]:
    known: dict[int, Tensor] = {}
    for number, tensor in enumerate(symbolic):
        known[id(tensor)] = value = packed[f"value{number}"]
        if f"mask{number}" in packed:
            value._keras_mask = packed[f"mask{number}"]
    return known
