"""Keras models as converters take them: traced under their signature, or of another float type."""

from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.layers import finalize
from exporter.graph.signature import Signature
from exporter.graph.types import Model


def serving_module(signature: Signature, *, batch: int | None = None) -> tuple[Any, Any]:
    """Traces a model as one function of named inputs that returns named outputs.

    A plain ``tf.Module`` holds the variables: converters that are handed the Keras 3 model itself
    lose its weights without a word.

    Args:
        signature: Of the model.
        batch: The batch size of the function, where that of the model is free; None leaves it so.

    Returns:
        The module, and the concrete function.
    """
    import tensorflow as tf

    inputs, _ = signature.interface(batch)
    module = tf.Module()
    module.model_variables = [variable.value for variable in signature.model.variables]
    specs = {i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs}
    module.serve = tf.function(signature.__call__, autograph=False)
    return module, module.serve.get_concrete_function(**specs)


def recast(model: Model, dtype: str) -> Model:
    """Rebuilds a Keras model with every floating point dtype set to another, same weights.

    Raises:
        ModelError: If the model cannot be rebuilt from its configuration.
    """
    import keras

    try:
        config = keras.saving.serialize_keras_object(model)
        # The configuration comes from an object of this process, not from a file.
        copy = keras.saving.deserialize_keras_object(_recast(config, dtype), safe_mode=False)
        copy.set_weights(model.get_weights())
        for layer in copy._flatten_layers():
            finalize(layer)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"No {dtype} copy of model {model.name!r} can be made: {brief(error)}"
        ) from error
    return copy


def _recast(config: Any, dtype: str) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": dtype}}
        return {
            key: dtype if key == "dtype" and _is_float(value) else _recast(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_recast(value, dtype) for value in config)
    return config


def _is_float(value: object) -> bool:
    return isinstance(value, str) and "float" in value
