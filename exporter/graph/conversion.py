"""Prepares Keras models for converters: traces them, and changes their float type."""

from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.rewrite import rewrite
from exporter.graph.signature import Signature
from exporter.graph.types import Model


def serving_module(signature: Signature, *, batch: int | None = None) -> tuple[Any, Any]:
    """Traces a model as a concrete function of named tensors; returns a module and the function.

    The module, a plain ``tf.Module``, holds the variables, because converters that are given a
    Keras 3 model lose its weights silently. A free batch size is set to ``batch`` if that is given.
    """
    import tensorflow as tf

    inputs, _ = signature.interface(batch)
    module = tf.Module()
    module.model_variables = [variable.value for variable in signature.model.variables]
    specs = {i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs}
    module.serve = tf.function(signature.__call__, autograph=False)
    return module, module.serve.get_concrete_function(**specs)


def recast(model: Model, dtype: str) -> Model:
    """Rebuilds a Keras model with every floating point dtype replaced, and the same weights.

    Raises:
        ModelError: If a layer cannot compute in it.
    """
    try:
        return rewrite(model, {}, dtype=dtype)
    except ModelError as error:
        raise ModelError(
            f"No {dtype} copy of model {model.name!r} can be made: {brief(error)}"
        ) from error
