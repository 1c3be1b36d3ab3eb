"""Translates configurations that Keras 2 stored, of layers and losses, to those of Keras 3."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from exporter.errors import ModelError

Config = Mapping[str, Any]

GRAPHS = {"Functional", "Model", "Sequential"}
"""Classes whose configuration is a graph of layers."""

OPERATIONS = {"TFOpLambda", "SlicingOpLambda"}
"""Classes that stand for an operation of TensorFlow."""

HARD_SIGMOID = "hard_sigmoid"
"""The activation that has another slope in Keras 3."""

_GONE = {
    *("ClassMethod", "InstanceMethod", "InstanceProperty", "TensorFlowOpLayer", "ModuleWrapper"),
    *("CuDNNGRU", "CuDNNLSTM", "LocallyConnected1D", "LocallyConnected2D", "DenseFeatures"),
    *("RandomHeight", "RandomWidth", "KerasLayer"),
}
"""Classes of Keras 2 that Keras 3 has nothing like."""

LAMBDA = (
    "a Lambda layer, which would run code from the file. Replace it by a layer of Keras, for "
    "example keras.layers.Rescaling."
)
"""Why a file is refused, and what helps."""

_CLASSES: Mapping[str, tuple[str, Config]] = {
    "BatchNormalizationV1": ("BatchNormalization", {}),
    "BatchNormalizationV2": ("BatchNormalization", {}),
    "SyncBatchNormalization": ("BatchNormalization", {"synchronized": True}),
    "ThresholdedReLU": ("ReLU", {}),
}
"""Classes of layers that are called otherwise in Keras 3, and options that they get there."""

_RENAMED: Mapping[str, Mapping[str, str]] = {
    "LeakyReLU": {"alpha": "negative_slope"},
    "ThresholdedReLU": {"theta": "threshold"},
}
"""Options by class that are called otherwise in Keras 3."""

_IDLE: Mapping[str, Any] = {
    "batch_input_shape": ...,
    "fused": ...,
    "groups": 1,
    "implementation": ...,
    "input_dtype": ...,
    "input_length": ...,
    "key_shape": ...,
    "query_shape": ...,
    "renorm_clipping": ...,
    "renorm_momentum": ...,
    "value_shape": ...,
}
"""Options that some layers lack in Keras 3, with a value that changes nothing; ``...`` is any."""

_ACTIVATIONS = {"softmax_v2": "softmax"}

Nested = Callable[[Config], Config]
"""Translates the configuration of a graph within a layer."""


def layer_config(stored: Config, nested: Nested) -> Config:
    """Translates the configuration of one layer, and of those within it.

    Raises:
        ModelError: If Keras 3 has no such layer, or lacks an option that changes something.
    """
    import keras

    stored_name = stored["class_name"]
    if stored_name == "Lambda":
        raise ModelError(f"it is {LAMBDA}")
    config = {name: _value(name, value, nested) for name, value in stored["config"].items()}
    own = own_class(stored)
    if own is not None:
        config.pop("batch_input_shape", None)
        return {"module": None, "class_name": own, "config": config, "registered_name": own}
    name, options = _CLASSES.get(stored_name, (stored_name, {}))
    kind = getattr(keras.layers, name, None)
    if not isinstance(kind, type):
        raise ModelError(unknown_class(stored_name))
    for old, new in _RENAMED.get(stored_name, {}).items():
        if old in config:
            config[new] = config.pop(old)
    if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
        (config["axis"],) = config["axis"]
    makers = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    known = {parameter for maker in makers for parameter in inspect.signature(maker).parameters}
    for option in sorted(set(config) - known):
        value, idle = config.pop(option), _IDLE.get(option)
        if idle is not ... and value not in (None, False, idle):
            raise ModelError(f"Keras 3 has no option {option}={value!r} for {name}.")
    # The weights are read anyway, and initializers may be of classes that are gone.
    config = {n: v for n, v in config.items() if not n.endswith("_initializer")} | dict(options)
    return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}


def unknown_class(name: str) -> str:
    """Tells what helps if Keras does not know a class."""
    if name in _GONE:
        return (
            f"Keras 3 has no class {name!r} any more. Save the model again with a layer of another "
            "class, by the version of TensorFlow that wrote it."
        )
    return (
        f"Keras 3 does not know its class {name!r}. Give the Python file that defines it by "
        "--import, or load the model in Python with its custom_objects and call exporter.run with "
        "the object."
    )


def safe_name(name: str) -> str:
    """Returns the name of a layer as Keras 3 takes it."""
    return name.replace("/", "_")


def activation_name(stored: Config) -> Any:
    """Returns the name of a layer's activation, None if it has no such thing."""
    activation = stored["config"].get("activation")
    return activation.get("config") if isinstance(activation, Mapping) else activation


def own_class(stored: Config) -> str | None:
    """Returns the name under which a class of the user's own is known, None if it is not."""
    import keras

    names = filter(None, (stored.get("registered_name"), stored["class_name"]))
    return next((n for n in names if keras.saving.get_registered_object(n) is not None), None)


def loss_config(stored: Any) -> Any:
    """Translates losses, in whatever structure, to what ``deserialize_keras_object`` takes."""
    if isinstance(stored, list):
        return [loss_config(part) for part in stored]
    if not isinstance(stored, Mapping):
        return stored
    if "class_name" not in stored:
        return {safe_name(name): loss_config(part) for name, part in stored.items()}
    if stored["class_name"] == "function":
        return stored["config"]
    config = {name: value for name, value in stored["config"].items() if name != "fn"}
    if config.get("reduction") == "auto":
        config["reduction"] = "sum_over_batch_size"
    own = own_class(stored)
    module = "keras.losses" if own is None else None
    name = own or stored["class_name"]
    return {"module": module, "class_name": name, "config": config, "registered_name": own}


def _value(option: str, value: Any, nested: Nested) -> Any:
    if isinstance(value, list):
        return [_value(option, part, nested) for part in value]
    if isinstance(value, str):
        if value == HARD_SIGMOID and option.endswith("activation"):
            raise ModelError("Keras 3 has hard_sigmoid with another slope than Keras 2.")
        return safe_name(value) if option == "name" else _ACTIVATIONS.get(value, value)
    if not isinstance(value, Mapping) or "class_name" not in value:
        return value
    if value["class_name"] == "function":
        return _value(option, value["config"], nested)
    return _object(value, nested)


def _object(value: Config, nested: Nested) -> Any:
    """Translates a value that is an object of a class."""
    import keras

    kind = value["class_name"]
    plain = {"TensorShape": "items", "__tuple__": "items", "Policy": "name", "PolicyV1": "name"}
    plain |= {"__numpy__": "value", "__tensor__": "value"}
    if kind in plain:
        return value.get("config", value)[plain[kind]]
    if kind in GRAPHS:
        return nested(value)
    if kind == "Lambda" or kind in _CLASSES or hasattr(keras.layers, kind) or own_class(value):
        return layer_config(value, nested)
    return {"class_name": kind, "config": value["config"]}
