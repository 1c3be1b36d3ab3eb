"""What is minimized: the loss of the task, the divergence from the baseline, or both."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import RecipeError, brief
from exporter.graph.network import Network
from exporter.graph.outputs import Family, as_logits

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """The loss of every sample, summed over the outputs of a model.

    ``(1 - distill) * task + distill * divergence``; where an output has no labels, or labels whose
    loss is not known, the divergence alone.

    The divergence of distributions is ``T^2 KL(teacher || student)``, both softened by the
    temperature T (Hinton, Vinyals and Dean, 2015); that of values is the squared error.

    Attributes:
        families: What each output is, by its name.
        losses: The task's own loss by output; where there is none, the cross-entropy of
            distributions and the squared error of values.
        distill: Weight of the divergence, 0 to 1.
        temperature: T, at least 1.
    """

    families: Mapping[str, Family]
    losses: Mapping[str, Callable[[Any, Any], Any]]
    distill: float
    temperature: float

    def needs_teacher(self, labelled: Collection[str]) -> bool:
        """Tells whether the divergence counts.

        Args:
            labelled: Outputs that have labels.
        """
        return self.distill > 0 or any(name not in labelled for name in self.families)

    def __call__(self, outputs: Tensors, labels: Tensors, teacher: Tensors) -> Any:
        """Returns the loss of each sample, a float32 tensor.

        Args:
            outputs: What the model predicts, by output name.
            labels: By output name; outputs without labels are missing.
            teacher: What the baseline predicts; empty if it is not needed.
        """
        total: Any = 0.0
        for name, family in self.families.items():
            predicted = outputs[name]
            weight = self.distill if name in labels else 1.0
            if weight > 0:
                total += weight * _divergence(predicted, teacher[name], family, self.temperature)
            if weight < 1:
                total += (1 - weight) * self._task(name, predicted, labels[name])
        return total

    def _task(self, name: str, predicted: Any, labels: Any) -> Any:
        own = self.losses.get(name)
        if own is not None:
            return _by_sample(own(_like(labels, predicted), predicted))
        return _by_sample(_task_loss(predicted, labels, self.families[name]))


def known_losses(loss: Any, network: Network) -> dict[str, Callable[[Any, Any], Any]]:
    """Reads what Keras takes as the loss of a model: one for all outputs, or one for each.

    Args:
        loss: As for ``keras.Model.compile``; None for none.
        network: The model.

    Returns:
        Functions of labels and predictions, not reduced, by output name.

    Raises:
        RecipeError: If it is none, or names an output that there is not.
    """
    if loss is None:
        return {}
    names = [info.name for info in network.outputs]
    if isinstance(loss, Mapping):
        keys = dict(zip(network.model.output_names, names, strict=True)) | {
            name: name for name in names
        }
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
    # What an object's `call` returns is not reduced yet.
    function: Callable[[Any, Any], Any]
    function = found.call if isinstance(found, keras.losses.Loss) else found
    return function


def _task_loss(predicted: Any, labels: Any, family: Family) -> Any:
    import tensorflow as tf

    if family == "gaussian":
        return tf.square(_like(tf.cast(labels, tf.float32), predicted) - predicted)
    logits = as_logits(predicted, family)
    if family == "bernoulli":
        wanted = _like(tf.cast(labels, tf.float32), logits)
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=wanted, logits=logits)
    if labels.shape.rank == logits.shape.rank:
        wanted = tf.cast(labels, tf.float32)
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
    """Gives labels of a single column the axis that the predictions have."""
    if labels.shape.rank == predicted.shape.rank - 1 and predicted.shape[-1] == 1:
        return labels[..., None]
    return labels


def _by_sample(losses: Any) -> Any:
    """Takes the mean over all axes but the first."""
    import tensorflow as tf

    losses = tf.cast(losses, tf.float32)
    return tf.reduce_mean(tf.reshape(losses, (tf.shape(losses)[0], -1)), axis=-1)
