"""What the outputs of a model are: distributions, which have a likelihood, or plain values."""

from collections.abc import Set
from typing import Literal

from exporter.graph.signature import Signature
from exporter.graph.types import Tensor

Family = Literal["categorical", "categorical_logits", "bernoulli", "gaussian"]
"""Probabilities of classes, their unnormalised logarithms, probabilities of yes, or values."""

_TINY = 1e-30
"""Smallest probability that is told from zero: the logarithm stays finite, in float32."""


def output_families(signature: Signature, logits: Set[str]) -> dict[str, Family]:
    """Tells by the last layer of each output what the output is.

    Args:
        signature: Of the model.
        logits: Outputs that classify: unless they are a softmax or sigmoid, they are taken for
            unnormalised log-probabilities.

    Returns:
        By output name.
    """
    import keras

    families: dict[str, Family] = {}
    tensors = keras.tree.flatten(signature.model.outputs)
    for name, tensor in zip((info.name for info in signature.outputs), tensors, strict=True):
        layer = tensor._keras_history.operation
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        if activation == "softmax" or isinstance(layer, keras.layers.Softmax):
            families[name] = "categorical"
        elif activation == "sigmoid":
            families[name] = "bernoulli"
        elif name in logits and tensor.shape[-1] != 1:
            families[name] = "categorical_logits"
        else:
            families[name] = "gaussian"
    return families


def as_logits(outputs: Tensor, family: Family) -> Tensor:
    """Returns the unnormalised log-probabilities behind the outputs of a classifier, in float32.

    Args:
        outputs: What the model returned.
        family: Not ``gaussian``.
    """
    import tensorflow as tf

    outputs = tf.cast(outputs, tf.float32)
    if family == "categorical_logits":
        return outputs
    positive = tf.math.log(tf.maximum(outputs, _TINY))
    if family == "categorical":
        return positive
    return positive - tf.math.log(tf.maximum(1.0 - outputs, _TINY))
