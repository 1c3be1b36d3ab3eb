"""Copies Keras layers attribute by attribute, so that no layer needs a configuration."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import CellType, FunctionType, MethodType
from typing import Any

from exporter.graph.layers import finalize
from exporter.graph.names import usable
from exporter.graph.types import Layer, Variable

_FRESH: dict[str, Callable[[], Any]] = {
    "_inbound_nodes": list,
    "_outbound_nodes": list,
    "_losses": list,
    "_loss_ids": set,
}
"""What a copy has of its own: it is in no graph yet."""

_LEFT_OUT = {
    "build",
    "quantize",
    "optimizer",
    "_optimizer",
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
    "train_function",
    "test_function",
    "predict_function",
}
"""What ``__new__`` makes, and what belongs to the training of the original."""


class Copier:
    """Copies layers, and all layers and variables that they hold, each once.

    Variables that two layers share are shared by the copies, too. Functions, initializers and
    other objects that hold neither layers nor variables are not copied.
    """

    def __init__(self, stand_in: Callable[[Layer], Any], dtype: str | None = None) -> None:
        """Prepares copies.

        Args:
            stand_in: Returns what takes the place of a layer; None has the layer copied.
            dtype: What replaces every floating point dtype.
        """
        self._stand_in, self._dtype = stand_in, dtype
        # By identity of the original, which is kept so that no other object takes its identity.
        self._copies: dict[int, tuple[Any, Any]] = {}

    def __call__(self, thing: Any) -> Any:
        """Returns the copy of an object, or the object itself if it need not be copied."""
        if id(thing) not in self._copies:
            self._note(thing, self._copy(thing))
        return self._copies[id(thing)][1]

    def _note(self, original: Any, copy: Any) -> Any:
        self._copies[id(original)] = (original, copy)
        return copy

    def _copy(self, thing: Any) -> Any:
        import keras
        import tensorflow as tf
        from keras.src.utils.tracking import Tracker

        stand_in = self._stand_in(thing) if isinstance(thing, keras.Layer) else None
        if stand_in is not None:
            return stand_in
        ways: dict[Any, Callable[[Any], Any]] = {
            (keras.Operation, Tracker, keras.Metric, keras.random.SeedGenerator): self._object,
            (keras.Variable,): self._variable,
            (tf.Variable,): lambda variable: tf.Variable(variable, trainable=variable.trainable),
            (list, dict, set, tuple): self._container,
            (tf.types.experimental.PolymorphicFunction,): lambda function: tf.function(
                self(function.python_function)
            ),
            (MethodType, partial, FunctionType): self._function,
            (object,): self._other,
        }
        return next(way for kinds, way in ways.items() if isinstance(thing, kinds))(thing)

    def _object(self, original: Any) -> Any:
        import keras
        import tensorflow as tf

        kind: Any = type(original)
        copy = self._note(original, kind.__new__(kind))
        is_layer, held = isinstance(original, keras.Layer), vars(copy)
        policy = getattr(original, "_dtype_policy", None)
        dtype, plain = self._dtype, policy is None or type(policy) is keras.DTypePolicy
        # The type of a layer that is quantized already is more than that of its floats.
        self._dtype = dtype if plain else None
        for name, value in vars(original).items():
            if name in _FRESH:
                held[name] = _FRESH[name]()
            elif name not in _LEFT_OUT | _records():
                held[name] = self(value)
        if "stored_ids" in held:
            held["stored_ids"] = {n: set(map(id, kept)) for n, (_, kept) in held["config"].items()}
        if dtype and not is_layer and _is_float(held.get("dtype")):
            held["dtype"] = dtype
        self._dtype = dtype
        if isinstance(original, keras.Model):
            held |= {"compiled": False, "loss": None}
        if is_layer:
            for name, value in list(held.items()):
                if isinstance(value, tf.__internal__.tracking.Trackable):
                    copy._track_trackable(value, name=name, overwrite=True)
            finalize(copy)
        return copy

    def _variable(self, original: Variable) -> Variable:
        import keras

        value, dtype = original.numpy(), original.dtype
        if self._dtype and _is_float(dtype):
            dtype = self._dtype
        copy = keras.Variable(
            value,
            dtype=dtype,
            trainable=original.trainable,
            autocast=original._autocast,
            aggregation=original.aggregation,
            name=original.name,
        )
        for name in ("_path", "_regularizer", "_constraint", "_overwrite_with_gradient"):
            setattr(copy, name, getattr(original, name))
        copy._path = usable(copy._path)
        return copy

    def _container(self, original: Any) -> Any:
        """Copies a container; those that tell their layer of new entries are filled silently."""
        if isinstance(original, tuple):
            parts = [self(part) for part in original]
            return type(original)(*parts) if hasattr(original, "_fields") else tuple(parts)
        tracked = hasattr(original, "tracker")
        plain = next(kind for kind in (list, dict, set) if isinstance(original, kind))
        copy = self._note(original, type(original)() if tracked else plain())
        if isinstance(original, dict):
            dict.update(copy, {key: self(value) for key, value in original.items()})
        elif isinstance(original, set):
            set.update(copy, map(self, original))
        else:
            list.extend(copy, map(self, original))
        if tracked:
            copy.tracker = self(original.tracker)
        return copy

    def _function(self, original: Any) -> Any:
        """Binds a function to the copies of what it is bound to."""
        if isinstance(original, MethodType):
            return MethodType(original.__func__, self(original.__self__))
        if isinstance(original, partial):
            arguments = {key: self(value) for key, value in original.keywords.items()}
            return partial(self(original.func), *map(self, original.args), **arguments)
        held = [cell.cell_contents for cell in original.__closure__ or () if _is_filled(cell)]
        self._note(original, original)  # It may hold itself.
        if all(self(value) is value for value in held):
            return original
        cells = tuple(
            CellType(self(cell.cell_contents)) if _is_filled(cell) else cell
            for cell in original.__closure__
        )
        copy = FunctionType(
            original.__code__, original.__globals__, original.__name__, original.__defaults__, cells
        )
        copy.__kwdefaults__, copy.__dict__ = original.__kwdefaults__, {**vars(original)}
        return copy

    def _other(self, thing: Any) -> Any:
        import keras
        import numpy as np
        import tensorflow as tf

        dtype, copy = self._dtype, thing
        if is_dataclass(thing) and not isinstance(thing, type):
            copy = object.__new__(type(thing))
            for name in (field.name for field in fields(thing)):
                object.__setattr__(copy, name, self(getattr(thing, name)))
        elif dtype and type(thing) is keras.DTypePolicy:
            copy = keras.DTypePolicy(dtype)
        elif dtype and isinstance(thing, np.ndarray) and _is_float(thing.dtype.name):
            copy = thing.astype(dtype)
        elif dtype and isinstance(thing, tf.Tensor) and thing.dtype.is_floating:
            copy = tf.cast(thing, dtype)
        return copy


@cache
def _records() -> set[str]:
    """Names what TensorFlow notes in each layer; a user's attribute may begin alike."""
    import keras

    layer = keras.Layer()
    layer.part = keras.Layer()  # Most notes are of what a layer holds.
    return {name for name in vars(layer) if name.startswith("_self_")}


def _is_float(dtype: Any) -> bool:
    return isinstance(dtype, str) and "float" in dtype


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
