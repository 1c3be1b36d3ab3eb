"""What the outputs of a model are: distributions, which have a likelihood, or plain values."""

from collections.abc import Set
from typing import Literal

from exporter.graph.layers import activation_of
from exporter.graph.signature import Signature
from exporter.graph.types import Layer, Model, Tensor

Family = Literal["categorical", "categorical_logits", "bernoulli", "gaussian"]
"""Probabilities of classes, their unnormalised logarithms, probabilities of yes, or values."""

_TINY = 1e-30
"""Smallest probability that is told from zero: the logarithm stays finite, in float32."""


def output_layers(model: Model) -> list[Layer]:
    """Returns the layer, or nested model, that makes each output of a model."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def output_families(signature: Signature, logits: Set[str]) -> dict[str, Family]:
    """Tells by the last layer of each output what the output is.

    Args:
        signature: Of the model.
        logits: Outputs that classify: unless they are a softmax or sigmoid, they are taken for
            unnormalised log-probabilities.

    Returns:
        By output name.
    """
    families: dict[str, Family] = {}
    names, model = [info.name for info in signature.outputs], signature.model
    for name, layer, tensor in zip(names, output_layers(model), model.outputs, strict=True):
        probabilities = activation_of(layer).probabilities
        if probabilities is not None:
            families[name] = probabilities
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
