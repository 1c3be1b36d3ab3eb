"""Prepares Keras models for converters: traces them, and changes their float type."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.hooks import replaced
from exporter.graph.recurrent import unrolled
from exporter.graph.rewrite import rewrite
from exporter.graph.signature import Signature
from exporter.graph.types import Model


def serving_module(
    signature: Signature, *, batch: int | None = None, unroll: bool = False
) -> tuple[Any, Any]:
    """Traces a model as a concrete function of named tensors; returns a module and the function.

    The module, a plain ``tf.Module``, holds the variables, because converters that are given a
    Keras 3 model lose its weights silently. A free batch size is set to ``batch`` if that is given.
    With ``unroll``, loops over the steps of sequences of a fixed length are written out.
    """
    import tensorflow as tf

    inputs, _ = signature.interface(batch)
    module = tf.Module()
    module.model_variables = [variable.value for variable in signature.model.variables]
    specs = {i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs}
    module.serve = tf.function(signature, autograph=False)
    with signs_compared(), unrolled(signature.model) if unroll else nullcontext():
        return module, module.serve.get_concrete_function(**specs)


def signs_compared() -> AbstractContextManager[None]:
    """Has Keras tell signs by comparison, not by bits, which converters have no operators for.

    Only negative zeros differ, which ``keras.ops.argmax`` would rank below zeros.
    """
    from keras.src import backend

    return replaced([(backend.numpy, "signbit", lambda x: x < 0)])


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
