"""Defines the contract of a training phase."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from exporter.graph.network import Network
from exporter.graph.types import Variable
from exporter.training.data import Batch
from exporter.training.objective import SampleLosses


class Phase(ABC):
    """A model in training, with its weights and their gradients.

    Attributes:
        name: Name of the kind of training.
        clip: Most norm of all gradients together; None does not clip.
        student: The model of low rank, which predicts.
        trained: The variables that the optimizer updates.
        state: All variables to save, ``trained`` included, in the same order in every process.
    """

    name: ClassVar[str]
    clip: ClassVar[float | None] = None
    student: Network
    trained: Sequence[Variable]
    state: Sequence[Variable]

    def prepare(self) -> None:  # noqa: B027 - most prepare nothing
        """Updates the student before a step or an evaluation, once for all replicas."""

    def losses(self, objective: SampleLosses, batch: Batch, share: Any) -> tuple[Any, Any]:
        """Computes this replica's part of the mean loss, without and with regularization losses."""
        import tensorflow as tf

        outputs = self.student.signature.call(batch.inputs, training=True)
        loss = share * tf.reduce_sum(objective(outputs, batch.labels, batch.teacher))
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        return loss, loss + sum(self.student.model.losses, 0.0) / replicas

    @abstractmethod
    def gradients(self, objective: SampleLosses, batch: Batch, share: Any) -> tuple[Any, list[Any]]:
        """Computes this replica's part of the mean loss, without regularization, and its gradients.

        The gradients are in the order of ``trained``. ``share`` is the weight of each sample's
        loss: one over the samples of all replicas.
        """
