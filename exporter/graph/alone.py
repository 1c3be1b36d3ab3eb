"""Makes models of single layers, so that each can be measured on its own."""

import json
from typing import Any

from exporter.graph.calls import Call
from exporter.graph.copying import Copier
from exporter.graph.network import Network
from exporter.graph.types import Layer

INPUT = "inputs"


def alone(layer: Layer, call: Call | None) -> Network | None:
    """Makes a model of the copy of one layer, with the input that it has in a call on one sample.

    A layer that attends to itself is given its input as often as in the call.

    Returns:
        The model; None if the call is unknown, or takes several tensors.
    """
    if call is None or len({id(tensor) for tensor in call.inputs}) != 1:
        return None
    import keras

    given = call.inputs[0]
    if None in given.shape:
        return None
    inputs = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=INPUT)
    outputs = Copier(lambda part: None)(layer)(*[inputs] * len(call.inputs))
    return Network(keras.Model(inputs, outputs, name="alone"))


def fingerprint(network: Network) -> str:
    """Describes a model by its layers, their shapes and settings, without names and values."""
    described = []
    for layer in network.model.layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        described.append([type(layer).__name__, _nameless(layer.get_config()), shapes])
    return json.dumps(described, default=str, sort_keys=True)


def _nameless(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if "name" not in key}
    return [_nameless(value) for value in config] if isinstance(config, (list, tuple)) else config
