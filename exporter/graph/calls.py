"""Records how layers inside other layers are called: no graph of Keras knows of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from exporter.graph.hooks import replaced
from exporter.graph.signature import Signature
from exporter.graph.types import Layer, Tensor, Variable


@dataclass(frozen=True)
class Call:
    """The first call of a layer, with symbolic tensors.

    Attributes:
        obstacle: Why the layer cannot be replaced by others; empty if nothing is known.
        times: How often the layer is called; 1 if nothing is known.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    obstacle: str = ""
    times: int = 1


_RECORDS: WeakKeyDictionary[Layer, Call] = WeakKeyDictionary()

_SAMPLE_CALLS: dict[Layer, Call] = {}

_PENDING: WeakKeyDictionary[Layer, Callable[[], None]] = WeakKeyDictionary()
"""What records the calls of layers, which takes a trace, when they are first asked for."""


def record_when_asked(layers: Iterable[Layer], record: Callable[[], None]) -> None:
    """Has the calls of layers be recorded when one is asked for; earlier records are dropped.

    The function must not hold the layers, which would never be freed.
    """
    for layer in layers:
        _RECORDS.pop(layer, None)
        _PENDING[layer] = record


def _record(layer: Layer) -> Call | None:
    if layer in _PENDING and layer not in _RECORDS:
        _PENDING[layer]()
    return _RECORDS.get(layer)


def first_call(layer: Layer) -> Call | None:
    """Returns the first call of a layer in its graph, or inside another layer; None if unknown."""
    if layer in _SAMPLE_CALLS:
        return _SAMPLE_CALLS[layer]
    for node in layer._inbound_nodes[:1]:
        arguments = node.arguments
        return Call(arguments.args, arguments.kwargs, node.input_tensors, node.outputs)
    return _record(layer)


def obstacle(layer: Layer) -> str:
    """Says why a recorded layer cannot be replaced by others; empty if nothing is known."""
    record = _record(layer)
    return record.obstacle if record else ""


@contextmanager
def of_one_sample(calls: dict[Layer, Call]) -> Iterator[None]:
    """Has ``first_call`` return calls from ``trace_sample``, of known sizes, in the block."""
    _SAMPLE_CALLS.update(calls)
    try:
        yield
    finally:
        _SAMPLE_CALLS.clear()


def trace_sample(signature: Signature, layers: Iterable[Layer]) -> tuple[Any, dict[Layer, Call]]:
    """Traces a model for one sample; returns the concrete function, and the layers' calls."""
    recorder = _Recorder((layer, ()) for layer in layers)
    shapes = {info.name: signature.sample_shape(info) for info in signature.inputs}
    function = recorder.trace(signature, shapes, nullcontext())
    return function, {x: call for x, call in recorder.calls().items() if call.outputs}


def record_calls(signature: Signature, layers: Iterable[tuple[Layer, Iterable[Variable]]]) -> None:
    """Traces a model once, and records the first call of each layer, given with its weights.

    A layer has an obstacle whose weights are read by others, or by none, and one that is called
    where its inputs cannot be observed, or are the same for all samples.
    """
    import keras

    recorder = _Recorder(layers)

    class Reads(keras.StatelessScope):  # type: ignore[misc]
        """Is asked for the value of each variable that is read."""

        def get_current_value(self, variable: Variable) -> Any:
            recorder.note_read(variable)
            return super().get_current_value(variable)

    shapes = {info.name: info.shape for info in signature.inputs}
    recorder.trace(signature, shapes, Reads(initialize_variables=False))
    _RECORDS.update(recorder.calls())


class _Recorder:
    def __init__(self, layers: Iterable[tuple[Layer, Iterable[Variable]]]) -> None:
        self.sources: set[Any] = set()
        self._layers: dict[int, Layer] = {}
        self._holders: dict[int, list[int]] = {}
        for layer, weights in layers:
            self._layers[id(layer)] = layer
            for variable in weights:
                self._holders.setdefault(id(variable), []).append(id(layer))
        self._active: list[int] = []
        self._found: dict[int, Call] = {}
        self._times: Counter[int] = Counter()
        self._obstacles: dict[int, str] = {}
        for keys in self._holders.values():
            if len(keys) > 1:
                self._obstacles |= dict.fromkeys(keys, "shares a weight with another layer")

    def trace(
        self, signature: Signature, shapes: Mapping[str, Any], scope: AbstractContextManager[Any]
    ) -> Any:
        """Traces a model for inputs of some shapes, called in a scope, and notes its calls."""
        import tensorflow as tf

        def call(**inputs: Tensor) -> Any:
            self.sources = {tensor.op for tensor in inputs.values()}
            with scope:
                return signature(**inputs)

        specs = {i.name: tf.TensorSpec(shapes[i.name], i.dtype) for i in signature.inputs}
        with replaced(self.patches()):
            return tf.function(call, autograph=False).get_concrete_function(**specs)

    def patches(self) -> list[tuple[Layer, str, Any]]:
        return [(x, "call", partial(self._note, k, x.call)) for k, x in self._layers.items()]

    def calls(self) -> dict[Layer, Call]:
        never = Call(obstacle="is not called when the model predicts")
        return {
            layer: replace(
                call,
                obstacle=self._obstacles.get(key, call.obstacle),
                times=self._times[key],
            )
            for key, layer in self._layers.items()
            for call in [self._found.get(key, never)]
        }

    def note_read(self, variable: Variable) -> None:
        keys = self._holders.get(id(variable), [])
        if not set(keys) & set(self._active):
            self._obstacles |= dict.fromkeys(keys, "its weights are read by another layer")

    def _note(self, key: int, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        import keras
        import tensorflow as tf

        if tf.compat.v1.get_default_graph() not in {op.graph for op in self.sources}:
            self._obstacles[key] = "is called within a loop, or a function of its own"
        self._active.append(key)
        self._times[key] += 1
        try:
            result = call(*args, **kwargs)
        finally:
            self._active.pop()
        if key not in self._found:
            inputs, outputs = (_tensors(given) for given in ((args, kwargs), result))
            given, named = keras.tree.map_structure(_symbolic, (args, kwargs))
            distinct = {id(tensor): _symbolic(tensor) for tensor in inputs}
            self._found[key] = Call(
                given,
                named,
                [distinct[id(tensor)] for tensor in inputs],
                list(map(_symbolic, outputs)),
                self._obstacle(inputs, outputs),
            )
        return result

    def _obstacle(self, inputs: list[Tensor], outputs: list[Tensor]) -> str:
        import tensorflow as tf

        if any(tensor.shape.rank is None for tensor in (*inputs, *outputs)):
            return "is called with tensors whose number of axes is unknown"
        if not self._depends([tensor.op for tensor in inputs if tf.is_symbolic_tensor(tensor)]):
            return "has the same outputs for all samples, which converters compute beforehand"
        return ""

    def _depends(self, ops: list[Any]) -> bool:
        """Tells whether operations depend on the inputs of the model."""
        seen = set(ops)
        while ops:
            op = ops.pop()
            if op in self.sources:
                return True
            before = {tensor.op for tensor in op.inputs} - seen
            seen |= before
            ops.extend(before)
        return False


def _tensors(structure: Any) -> list[Tensor]:
    import keras
    import tensorflow as tf

    return [x for x in keras.tree.flatten(structure) if isinstance(x, tf.Tensor)]


def _symbolic(value: Any) -> Any:
    import keras
    import tensorflow as tf

    if not isinstance(value, tf.Tensor):
        return value
    if value.shape.rank is None:
        return None  # No graph may be kept.
    return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))
