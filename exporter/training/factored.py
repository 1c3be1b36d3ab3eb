"""Trains the factors of a compressed model directly."""

from collections.abc import Mapping
from typing import Any

from exporter.graph.network import Network
from exporter.lowrank.engine import Factors
from exporter.training.data import Batch
from exporter.training.objective import SampleLosses
from exporter.training.phase import Phase


class Factored(Phase):
    """Trains all weights of a compressed model: its factors, biases and dense layers.

    Decay acts on the product of two factors, not on each: penalizing ``||U||^2 + ||V||^2`` would
    be a nuclear norm, which shrinks the rank as well (Khodak et al., 2021).
    """

    name = "factored"
    # A step of one factor changes the gradient of the other: without a clip, training is unstable.
    clip = 1.0

    def __init__(
        self, network: Network, factors: Mapping[str, Factors], decay: float = 0.0
    ) -> None:
        """Prepares a network that was built under the current strategy, to train it in place.

        ``decay`` is the weight of half the squared Frobenius norm of each product of factors.
        """
        self.student = network
        self.trained = network.model.trainable_variables
        self.state = network.model.variables
        self._decay = decay
        self._products = [each for each in factors.values() if each.is_plain_pair]

    def gradients(self, objective: SampleLosses, batch: Batch, share: Any) -> tuple[Any, list[Any]]:
        """See the base class."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss, total = self.losses(objective, batch, share)
            if self._decay:
                replicas = tf.distribute.get_replica_context().num_replicas_in_sync
                norms = [squared_product_norm(each) for each in self._products]
                total += 0.5 * self._decay / replicas * tf.add_n(norms)
        return loss, tape.gradient(total, self.trained)


def squared_product_norm(factors: Factors) -> Any:
    """Computes ``||U V||_F^2 = <Ut U, V Vt>`` from r x r matrices alone."""
    import tensorflow as tf

    u, v = (
        tf.reshape(tf.convert_to_tensor(weight), shape)
        for weight, shape in zip(factors.weights, factors.matrices, strict=True)
    )
    return tf.reduce_sum(tf.matmul(u, u, transpose_a=True) * tf.matmul(v, v, transpose_b=True))
