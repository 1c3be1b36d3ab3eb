"""Computes the loss of training: of the task, the divergence from the baseline, or both."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import RecipeError, brief
from exporter.graph.network import Network
from exporter.graph.outputs import Family, as_logits

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """The loss of each sample, summed over the outputs of a model.

    The loss of an output is ``(1 - distill) * task + distill * divergence`` if it has labels, and
    the divergence otherwise. The divergence of distributions is ``T^2 KL(teacher || student)`` at
    the temperature T (Hinton, Vinyals and Dean, 2015); of values it is the squared error.

    Attributes:
        losses: Loss of the task by output; the default is the cross-entropy of distributions and
            the squared error of values.
        distill: Weight of the divergence, 0 to 1.
        temperature: T, at least 1.
    """

    families: Mapping[str, Family]
    losses: Mapping[str, Callable[[Any, Any], Any]]
    distill: float
    temperature: float

    def needs_teacher(self, labelled: Collection[str]) -> bool:
        """Tells whether the loss needs the divergence, given the outputs that have labels."""
        return self.distill > 0 or any(name not in labelled for name in self.families)

    def __call__(self, outputs: Tensors, labels: Tensors, teacher: Tensors) -> Any:
        """Computes the loss of each sample, a float32 tensor of shape (samples,).

        All arguments are by output name; ``teacher`` may be empty if it is not needed.
        """
        total: Any = 0.0
        for name, family in self.families.items():
            predicted = outputs[name]
            weight = self.distill if name in labels else 1.0
            if weight > 0:
                total += weight * _divergence(predicted, teacher[name], family, self.temperature)
            if weight < 1:
                if (own := self.losses.get(name)) is not None:
                    loss = own(_like(labels[name], predicted), predicted)
                else:
                    loss = _task_loss(predicted, labels[name], family)
                total += (1 - weight) * _by_sample(loss)
        return total


def known_losses(loss: Any, network: Network) -> dict[str, Callable[[Any, Any], Any]]:
    """Resolves a loss of ``keras.Model.compile``: None, one for all outputs, or one for each.

    The result holds functions of labels and predictions, without reduction, by output name.

    Raises:
        RecipeError: If the loss or the name of an output is unknown.
    """
    if loss is None:
        return {}
    names = [info.name for info in network.outputs]
    if isinstance(loss, Mapping):
        keys = dict(zip([*network.model.output_names, *names], names * 2, strict=True))
        unknown = sorted(set(loss) - set(keys))
        if unknown:
            raise RecipeError(f"A loss is given for {unknown}. The model's outputs: {names}.")
        by_name = {keys[key]: each for key, each in loss.items()}
    elif isinstance(loss, (list, tuple)):
        if len(loss) != len(names):
            raise RecipeError(
                f"A list of losses needs one for each output {names}. Received: {len(loss)}."
            )
        by_name = dict(zip(names, loss, strict=True))
    else:
        by_name = dict.fromkeys(names, loss)
    return {name: _function(each) for name, each in by_name.items() if each is not None}


def _function(loss: Any) -> Callable[[Any, Any], Any]:
    import keras

    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"The loss {loss!r} is none of Keras: {brief(error)}") from error
    # The method `call` of a loss does not reduce.
    unreduced: Callable[[Any, Any], Any]
    unreduced = found.call if isinstance(found, keras.losses.Loss) else found
    return unreduced


def _task_loss(predicted: Any, labels: Any, family: Family) -> Any:
    import tensorflow as tf

    if family == "gaussian":
        return tf.square(_like(tf.cast(labels, tf.float32), predicted) - predicted)
    logits = as_logits(predicted, family)
    wanted = _like(tf.cast(labels, tf.float32), logits)
    if family == "bernoulli":
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=wanted, logits=logits)
    if labels.shape.rank == logits.shape.rank:
        return tf.nn.softmax_cross_entropy_with_logits(labels=wanted, logits=logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _divergence(student: Any, teacher: Any, family: Family, temperature: float) -> Any:
    import tensorflow as tf

    if family == "gaussian":
        return _by_sample(tf.square(tf.cast(teacher, tf.float32) - tf.cast(student, tf.float32)))
    cold, warm = (as_logits(x, family) / temperature for x in (teacher, student))
    if family == "bernoulli":
        cold, warm = (tf.stack([x, tf.zeros_like(x)], axis=-1) for x in (cold, warm))
    log_p, log_q = tf.nn.log_softmax(cold), tf.nn.log_softmax(warm)
    divergence = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * _by_sample(divergence)


def _like(labels: Any, predicted: Any) -> Any:
    """Adds the last axis to labels of predictions with a single column."""
    if labels.shape.rank == predicted.shape.rank - 1 and predicted.shape[-1] == 1:
        return labels[..., None]
    return labels


def _by_sample(losses: Any) -> Any:
    """Averages over all axes but the first."""
    import tensorflow as tf

    losses = tf.cast(losses, tf.float32)
    return tf.reduce_mean(tf.reshape(losses, (tf.shape(losses)[0], -1)), axis=-1)
