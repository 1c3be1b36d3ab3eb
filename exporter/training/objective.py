"""Computes the loss of training: of the task, the divergence from the baseline, or both."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.data import Task
from exporter.graph.outputs import (
    Family,
    as_given,
    as_logits,
    by_sample,
    loss_name,
    task_loss,
)

Tensors = Mapping[str, Any]

SampleLosses = Callable[[Tensors, Tensors, Tensors], Any]
"""Computes the loss of each sample of outputs, labels, and the baseline's outputs."""


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
        tasks: What the labels mean, by output.
    """

    families: Mapping[str, Family]
    losses: Mapping[str, Callable[[Any, Any], Any]]
    distill: float
    temperature: float
    tasks: Mapping[str, Task] = field(default_factory=dict)

    def needs_teacher(self, labelled: Collection[str]) -> bool:
        """Tells whether the loss needs the divergence, given the outputs that have labels."""
        return self.distill > 0 or any(name not in labelled for name in self.families)

    def __call__(self, outputs: Tensors, labels: Tensors, teacher: Tensors) -> Any:
        """Computes the loss of each sample, a float32 tensor of shape (samples,).

        The arguments are by output name; ``teacher`` may be empty if it is not needed.
        """
        total: Any = 0.0
        for name, family in self.families.items():
            predicted = outputs[name]
            weight = self.distill if name in labels else 1.0
            if weight > 0:
                total += weight * _divergence(predicted, teacher[name], family, self.temperature)
            if weight < 1:
                task = self.tasks.get(name, Task())
                if (own := self.losses.get(name)) is not None:
                    loss = _compiled_loss(own, labels[name], predicted, task)
                else:
                    loss = task_loss(predicted, labels[name], family, task)
                total += (1 - weight) * by_sample(loss)
        return total


def _compiled_loss(loss: Any, labels: Any, predicted: Any, task: Task) -> Any:
    """Computes a loss of ``compile``, unreduced, on labels in the form that it takes.

    Labels have the form that ``Task`` tells, which need not be the one that they were given in.
    """
    name = loss_name(loss)
    # A function of the user's was made for labels as they were given.
    by_index = task.form == "index" and predicted.shape[-1] != 1
    if (name is None and by_index) or (name or "").startswith("sparse"):
        labels = labels + task.first if name is None else labels
    else:
        labels = as_given(labels, task, predicted)
    import keras

    # The method `call` of a loss does not reduce.
    return (loss.call if isinstance(loss, keras.losses.Loss) else loss)(labels, predicted)


def _divergence(student: Any, teacher: Any, family: Family, temperature: float) -> Any:
    import tensorflow as tf

    if family == "gaussian":
        return by_sample(tf.square(tf.cast(teacher, tf.float32) - tf.cast(student, tf.float32)))
    cold, warm = (as_logits(x, family) / temperature for x in (teacher, student))
    if family.startswith("bernoulli"):
        cold, warm = (tf.stack([x, tf.zeros_like(x)], axis=-1) for x in (cold, warm))
    log_p, log_q = tf.nn.log_softmax(cold), tf.nn.log_softmax(warm)
    divergence = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * by_sample(divergence)
