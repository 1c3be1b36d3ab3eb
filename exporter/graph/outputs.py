"""What the outputs of a model are: distributions, which have a likelihood, or plain values."""

from collections.abc import Set
from typing import Any, Literal

from exporter.graph.layers import activation_of
from exporter.graph.signature import Signature

Family = Literal["categorical", "categorical_logits", "bernoulli", "gaussian"]
"""Probabilities of classes, their unnormalised logarithms, probabilities of yes, or values."""

_TINY = 1e-30
"""Smallest probability that is told from zero: the logarithm stays finite, in float32."""


def output_layers(model: Any) -> list[Any]:
    """Returns the layer, or nested model, that makes each output of a model."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def output_families(model: Any, logits: Set[str]) -> dict[str, Family]:
    """Tells by the last layer of each output what the output is.

    Args:
        model: The model.
        logits: Outputs that classify: unless they are a softmax or sigmoid, they are taken for
            unnormalised log-probabilities.

    Returns:
        By output name, as ``Signature`` has them.
    """
    families: dict[str, Family] = {}
    names = [info.name for info in Signature(model).outputs]
    for name, layer, tensor in zip(names, output_layers(model), model.outputs, strict=True):
        probabilities = activation_of(layer).probabilities
        if probabilities is not None:
            families[name] = probabilities
        elif name in logits and tensor.shape[-1] != 1:
            families[name] = "categorical_logits"
        else:
            families[name] = "gaussian"
    return families


def as_logits(outputs: Any, family: Family) -> Any:
    """Returns the unnormalised log-probabilities behind the outputs of a classifier, in float32.

    Args:
        outputs: A TensorFlow tensor.
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
