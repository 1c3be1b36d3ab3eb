"""The contract of a way to train."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from exporter.graph.network import Network
from exporter.graph.types import Variable
from exporter.training.objective import Objective

Tensors = Mapping[str, Any]


class Phase(ABC):
    """A model in training: which weights it has, and what moves them.

    Attributes:
        name: Of the way.
        clip: What the norm of all gradients together is clipped to; None leaves them as they are.
        student: The model of low rank, which predicts.
        trained: The variables that the optimizer moves.
        state: All variables that make the phase what it is, those of ``trained`` among them, in an
            order that is the same in every process.
    """

    name: ClassVar[str]
    clip: ClassVar[float | None] = None
    student: Network
    trained: Sequence[Variable]
    state: Sequence[Variable]

    def prepare(self) -> None:  # noqa: B027 - most prepare nothing
        """Does, once for all replicas, what comes before a step and before an evaluation."""

    @abstractmethod
    def gradients(
        self, objective: Objective, inputs: Tensors, labels: Tensors, teacher: Tensors, share: Any
    ) -> tuple[Any, Sequence[Any]]:
        """Computes one replica's part of a step.

        Args:
            objective: The loss of each sample.
            inputs: Tensors by input name.
            labels: By output name.
            teacher: The baseline's outputs by name; empty if they are not needed.
            share: What each sample's loss is multiplied by: one over the samples of all replicas.

        Returns:
            The part of the mean loss, without penalties, and gradients in the order of ``trained``.
        """


def penalties(network: Network) -> Any:
    """Returns this replica's part of the regularization losses that a network collected."""
    import tensorflow as tf

    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return sum(network.model.losses, 0.0) / replicas
