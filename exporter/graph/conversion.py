"""Keras models as converters take them: traced under their signature, or of another float type."""

from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.layers import finalize
from exporter.graph.signature import Signature


def serving_module(model: Any, *, batch: int | None = None) -> tuple[Any, Any]:
    """Traces the model as one function of named inputs that returns named outputs.

    A plain ``tf.Module`` holds the variables: converters that are handed the Keras 3 model itself
    lose its weights without a word.

    Args:
        model: The model.
        batch: The batch size of the function, where that of the model is free; None leaves it so.

    Returns:
        The module, and the concrete function.

    Raises:
        ModelError: If ``Signature`` refuses the model.
    """
    import tensorflow as tf

    signature = Signature(model, batch=batch)
    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    specs = {i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in signature.inputs}
    module.serve = tf.function(signature.__call__, autograph=False)
    return module, module.serve.get_concrete_function(**specs)


def recast(model: Any, dtype: str) -> Any:
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
