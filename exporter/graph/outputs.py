"""Tells distributions, which have a likelihood, from plain values among the outputs of a model."""

from typing import Literal

from exporter.graph.types import Layer, Model, Tensor

Family = Literal["categorical", "categorical_logits", "bernoulli", "gaussian"]
"""Class probabilities, unnormalised log-probabilities, probabilities of yes, or plain values."""

_TINY = 1e-30
"""Smallest probability that is told from zero: the logarithm stays finite, in float32."""


def output_layers(model: Model) -> list[Layer]:
    """Returns the layer, or nested model, that makes each output of a model."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def as_logits(outputs: Tensor, family: Family) -> Tensor:
    """Turns outputs of a classifier, not ``gaussian``, into unnormalised log-probabilities."""
    import tensorflow as tf

    outputs = tf.cast(outputs, tf.float32)
    if family == "categorical_logits":
        return outputs
    positive = tf.math.log(tf.maximum(outputs, _TINY))
    if family == "categorical":
        return positive
    return positive - tf.math.log(tf.maximum(1.0 - outputs, _TINY))
