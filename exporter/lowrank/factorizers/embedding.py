"""Embeddings."""

from typing import Any

from exporter.graph.layers import called_with, is_called_once, output_shape, rebuild
from exporter.lowrank.factorizers.base import Factorizer, Shape, linear_dense
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation


class EmbeddingFactorizer(Factorizer):
    """``Embedding(V, n)`` becomes ``Embedding(V, r)`` and ``Dense(n, no bias, linear)``.

    The first layer computes the mask of zeros, and the second one passes it on.
    """

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""

        def outputs(indices: Any) -> Any:
            import tensorflow as tf

            rows = tf.gather(layer.embeddings, tf.reshape(tf.cast(indices, tf.int32), [-1]))
            return tf.reshape(rows, (-1, 1, layer.output_dim))

        positions = count_positions(output_shape(layer)[1:-1])
        kernel = Kernel(
            m=layer.input_dim,
            n=layer.output_dim,
            layer=layer,
            variable=layer.embeddings,
            read=one_matrix,
            outputs=outputs,
            positions=positions,
            applied=(0, 0, positions, positions),  # To look up rows costs no multiplication.
            has_bias=False,
            gradient_at="output",
        )
        return (kernel,)

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        return rebuild(
            layer,
            None,
            [matrices[0]],
            name=name,
            output_dim=matrices.shape[2],
            embeddings_constraint=None,
            activity_regularizer=None,
        )

    def middle(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        regularizer = layer.embeddings_regularizer
        return linear_dense(layer, name, matrices[0], kernel_regularizer=regularizer)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        return linear_dense(
            layer,
            layer.name,
            truncation.matrices[-1][0],
            kernel_regularizer=layer.embeddings_regularizer,
            activity_regularizer=layer.activity_regularizer,
        )


class ReversibleEmbeddingFactorizer(EmbeddingFactorizer):
    """Factorizes an embedding that could project back to its indices, where it does not."""

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        once = layer.tie_weights and is_called_once(layer)
        if not once or called_with(layer).get("reverse", False):
            return "its matrix is used in both directions"
        return super().obstacle(layer)
