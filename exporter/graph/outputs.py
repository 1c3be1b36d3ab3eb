"""Tells distributions, which have a likelihood, from plain values among the outputs of a model."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from exporter.errors import RecipeError, brief, did_you_mean
from exporter.graph.types import Layer, Model, Tensor

if TYPE_CHECKING:
    from exporter.data import Task

Family = Literal["categorical", "categorical_logits", "bernoulli", "bernoulli_logits", "gaussian"]
"""Probabilities of classes or their logits, of yes or their logits, or plain values."""

_TINY = 1e-30
"""Smallest probability that is told from zero: the logarithm stays finite, in float32."""


def output_layers(model: Model) -> list[Layer]:
    """Returns the layer, or nested model, that makes each output of a model."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def as_logits(outputs: Tensor, family: Family) -> Tensor:
    """Turns outputs of a classifier, not ``gaussian``, into unnormalised log-probabilities."""
    import tensorflow as tf

    outputs = tf.cast(outputs, tf.float32)
    if family.endswith("logits"):
        return outputs
    positive = tf.math.log(tf.maximum(outputs, _TINY))
    if family == "categorical":
        return positive
    return positive - tf.math.log(tf.maximum(1.0 - outputs, _TINY))


def task_loss(predicted: Tensor, labels: Tensor, family: Family, task: "Task") -> Tensor:
    """Computes the cross-entropy of distributions, or the squared error of values, unreduced.

    Labels have the form that ``Task`` tells.
    """
    import tensorflow as tf

    if family == "gaussian":
        wanted = as_given(labels, task, predicted)
        return tf.square(tf.cast(wanted, tf.float32) - tf.cast(predicted, tf.float32))
    logits = as_logits(predicted, family)
    if family.startswith("bernoulli"):
        wanted = tf.cast(as_given(labels, replace(task, form="index"), logits), tf.float32)
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=wanted, logits=logits)
    if labels.shape.rank == logits.shape.rank:
        wanted = tf.cast(labels, tf.float32)
        return tf.nn.softmax_cross_entropy_with_logits(labels=wanted, logits=logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def as_given(labels: Tensor, task: "Task", predicted: Tensor) -> Tensor:
    """Turns classes into a column of numbers, or one-hot rows, of the shape of predictions."""
    import tensorflow as tf

    if len(labels.shape) == len(predicted.shape):
        return labels
    if predicted.shape[-1] != 1:
        return tf.one_hot(labels, predicted.shape[-1])
    column = labels[..., None]
    return 2 * column - 1 if task.form == "signed" else column


def by_sample(losses: Tensor) -> Tensor:
    """Averages over all axes but the first."""
    import tensorflow as tf

    losses = tf.cast(losses, tf.float32)
    return tf.reduce_mean(tf.reshape(losses, (tf.shape(losses)[0], -1)), axis=-1)


def losses_by_output(
    loss: Any, names: list[str], keras_names: list[str]
) -> dict[str, Callable[[Any, Any], Any]]:
    """Resolves a loss of ``keras.Model.compile``: None, one for all outputs, or one for each.

    Args:
        loss: The loss.
        names: The outputs.
        keras_names: Their names in Keras, by which losses may be given as well.

    Returns:
        Losses, as objects or functions, by output.

    Raises:
        RecipeError: If the loss or the name of an output is unknown.
    """
    if loss is None:
        return {}
    if isinstance(loss, Mapping):
        keys = dict(zip([*keras_names, *names], names * 2, strict=True))
        unknown = sorted(set(loss) - set(keys))
        if unknown:
            raise RecipeError(
                f"A loss is given for {unknown}. The model's outputs: {names}."
                f"{did_you_mean(unknown, keys)}"
            )
        by_name = {keys[key]: each for key, each in loss.items()}
    elif isinstance(loss, (list, tuple)):
        if len(loss) != len(names):
            raise RecipeError(
                f"A list of losses needs one for each output {names}. Received: {len(loss)}."
            )
        by_name = dict(zip(names, loss, strict=True))
    else:
        by_name = dict.fromkeys(names, loss)
    return {name: _known(each) for name, each in by_name.items() if each is not None}


def _known(loss: Any) -> Any:
    import keras

    try:
        return keras.losses.get(loss)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"The loss {loss!r} is none of Keras: {brief(error)}") from error


def loss_name(loss: Any) -> str | None:
    """Returns the name of a loss of Keras, as ``mean_squared_error``; None if it is the user's."""
    kind = loss if hasattr(loss, "__name__") else type(loss)
    if not kind.__module__.startswith("keras."):
        return None
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
