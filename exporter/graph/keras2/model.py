"""Builds a model of Keras 3 from the configuration of one of Keras 2."""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from exporter.errors import ModelError, root_cause
from exporter.graph.keras2.layers import (
    GRAPHS,
    HARD_SIGMOID,
    OPERATIONS,
    Config,
    activation_name,
    layer_config,
    safe_name,
)
from exporter.graph.keras2.operations import operation
from exporter.graph.types import Layer, Model, Tensor

_CONSTANT = "_CONSTANT_VALUE"


def model_from(stored: Config) -> Model:
    """Builds a Sequential or Functional model, without its weights, in safe mode.

    Raises:
        ModelError: If a layer cannot be translated; the message names it and the cause.
    """
    stored = {**stored, "config": _as_mapping(stored["config"])}
    if stored["class_name"] == "Sequential":
        model = _sequential(stored["config"])
    elif "input_layers" in stored["config"]:
        model = _Graph(stored["config"]).model()
    else:
        raise ModelError(f"{stored['class_name']!r} is no Sequential or Functional model.")
    if stored["config"].get("trainable") is False:
        model.trainable = False
    return model


def stored_layers(config: Any) -> list[Config]:
    """Returns what a graph's configuration has of its layers, in the order of their weights."""
    return list(_as_mapping(config)["layers"])


def stored_name(stored: Config) -> str:
    """Returns the name of a layer in its file."""
    return str(stored.get("name") or stored["config"]["name"])


def _as_mapping(config: Any) -> Config:
    return config if isinstance(config, Mapping) else {"name": "sequential", "layers": config}


def _sequential(config: Config) -> Model:
    import keras

    layers = stored_layers(config)
    first, name = layers[0], stored_name(layers[0])
    if first["class_name"] == "InputLayer":
        del layers[0]
    else:
        name = f"{name}_input"
    if first["class_name"] in GRAPHS:  # Its input is that of the model.
        first = stored_layers(first["config"])[0]
    shape = first["config"].get("batch_input_shape") or config.get("build_input_shape")
    if shape is None:
        raise ModelError(
            f"model {config['name']!r} was saved before it was built, so the shapes of its "
            "weights are unknown."
        )
    inputs = _input(name, shape, first["config"])
    if not any(activation_name(layer) == HARD_SIGMOID for layer in layers):
        made = [inputs, *map(_new_layer, layers)]
        return keras.Sequential(made, name=safe_name(config["name"]))
    outputs = inputs
    for layer in layers:
        outputs = _called(layer, _new_layer(layer), outputs, {})
    return keras.Model(inputs, outputs, name=safe_name(config["name"]))


class _PendingError(Exception):
    """A call needs the result of one that has not been made."""


class _Graph:
    """Makes the layers of a Functional model, and repeats their calls in order."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._layers: dict[str, Layer] = {}
        self._results: dict[str, list[Any]] = defaultdict(list)
        self._names = {stored_name(layer) for layer in stored_layers(config)}
        self._first = self._first_calls()

    def model(self) -> Model:
        import keras

        waiting = []
        for stored in stored_layers(self._config):
            name = stored_name(stored)
            if stored["class_name"] == "InputLayer":
                options = stored["config"]
                self._results[name].append(_input(name, options["batch_input_shape"], options))
                continue
            if stored["class_name"] not in OPERATIONS:
                self._layers[name] = _new_layer(stored)
            waiting.append((stored, list(stored["inbound_nodes"])))
        while waiting:
            before = sum(len(calls) for _, calls in waiting)
            for stored, calls in waiting:
                self._call(stored, calls)
            waiting = [(stored, calls) for stored, calls in waiting if calls]
            if before == sum(len(calls) for _, calls in waiting):
                raise ModelError(
                    f"the calls of {[stored_name(s) for s, _ in waiting]} are in a loop."
                )
        inputs, outputs = (
            self._resolve(_single(self._config[key])) for key in ("input_layers", "output_layers")
        )
        return keras.Model(inputs, outputs, name=safe_name(self._config["name"]))

    def _call(self, stored: Config, calls: list[Any]) -> None:
        """Makes the calls of a layer that can be made, and removes them from the list."""
        name = stored_name(stored)
        is_operation = stored["class_name"] in OPERATIONS
        while calls:
            try:
                first = self._resolve(calls[0] if is_operation else _single(calls[0]))
                arguments = self._resolve(_arguments(calls[0]))
            except _PendingError:
                return
            with _told(stored):
                if is_operation:
                    result = _operation(stored, first, arguments)
                else:
                    result = _called(stored, self._layers[name], first, arguments)
            self._results[name].append(result)
            del calls[0]

    def _resolve(self, value: Any) -> Any:
        """Puts tensors in the place of references to them."""
        import keras

        if isinstance(value, Mapping):
            return {key: self._resolve(part) for key, part in value.items()}
        if not isinstance(value, list):
            return value
        if value[:1] == [_CONSTANT]:
            return value[2]
        if not self._is_reference(value):
            return [self._resolve(part) for part in value]
        name, call, index = value[:3]
        call -= self._first[name]
        if len(self._results[name]) <= call:
            raise _PendingError
        result = self._results[name][call]
        tensors = keras.tree.flatten(result)
        whole = not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors)
        return result if whole else tensors[index]

    def _is_reference(self, value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) in {3, 4}
            and isinstance(value[0], str)
            and value[0] in self._names
            and all(isinstance(part, int) for part in value[1:3])
        )

    def _first_calls(self) -> dict[str, int]:
        """Finds the number of each layer's first call; it is 1 for most nested models."""
        found: dict[str, int] = {}

        def search(value: Any) -> None:
            if self._is_reference(value):
                found[value[0]] = min(value[1], found.get(value[0], value[1]))
            if isinstance(value, (list, Mapping)):
                for part in value.values() if isinstance(value, Mapping) else value:
                    search(part)

        search([layer["inbound_nodes"] for layer in stored_layers(self._config)])
        search(self._config["output_layers"])
        return found


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _arguments(call: Any) -> Config:
    """Finds the arguments beside the first one, which each tensor of that one repeats."""
    if isinstance(call, list) and call and isinstance(call[0], str):
        return call[3] if len(call) > 3 else {}
    parts = list(call.values()) if isinstance(call, Mapping) else call
    return _arguments(parts[0]) if parts else {}


@contextmanager
def _told(stored: Config) -> Iterator[None]:
    """Adds the name of a layer to whatever error the block raises."""
    try:
        yield
    except Exception as error:  # Keras raises whatever its layers run into.
        label = f"layer {stored_name(stored)!r} ({stored['class_name']})"
        raise ModelError(f"{label}: {root_cause(error)}") from error


def _input(name: str, shape: Any, options: Config) -> Tensor:
    import keras

    if options.get("ragged"):
        raise ModelError(f"input {name!r} is ragged, which Keras 3 does not take.")
    dtype = options.get("dtype")
    return keras.Input(
        batch_shape=tuple(shape["items"] if isinstance(shape, Mapping) else shape),
        dtype=dtype if isinstance(dtype, str) else "float32",
        sparse=bool(options.get("sparse")),
        name=safe_name(name),
    )


def _new_layer(stored: Config) -> Layer:
    import keras

    with _told(stored):
        if stored["class_name"] in GRAPHS:
            return model_from(stored)
        if activation_name(stored) == HARD_SIGMOID and not _recurrent(stored):
            stored = {**stored, "config": {**stored["config"], "activation": "linear"}}
        return keras.saving.deserialize_keras_object(layer_config(stored, _nested), safe_mode=True)


def _nested(stored: Config) -> Config:
    import keras

    return keras.saving.serialize_keras_object(model_from(stored))  # type: ignore[no-any-return]


def _recurrent(stored: Config) -> bool:
    return any(option.startswith("recurrent_") for option in stored["config"])


def _called(stored: Config, layer: Layer, first: Any, arguments: Config) -> Any:
    """Calls a layer as Keras 2 did."""
    import keras

    taken = inspect.signature(layer.call).parameters
    given = {
        name: value
        for name, value in arguments.items()
        if value is not None and (name in taken or not isinstance(value, bool))
    }
    if isinstance(first, list) and isinstance(
        layer, (keras.layers.RNN, keras.layers.Bidirectional)
    ):
        first, *given["initial_state"] = first
    result = layer(first, **given)
    sigmoid = activation_name(stored) == HARD_SIGMOID
    return operation(f"keras.activations.{HARD_SIGMOID}")(result) if sigmoid else result


def _operation(stored: Config, first: Any, arguments: Config) -> Any:
    """Calls an operation, and names what came of it as the file does."""
    import keras

    function = operation(stored["config"]["function"])
    result = function(first, **{n: value for n, value in arguments.items() if n != "name"})
    for tensor in keras.tree.flatten(result):
        if isinstance(tensor, keras.KerasTensor):
            tensor._keras_history.operation.name = safe_name(stored_name(stored))
    return result
