"""Embeddings."""

from collections.abc import Mapping
from typing import Any

from exporter.graph.layers import output_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, head_names, linear_dense
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix
from exporter.lowrank.linalg.truncation import Truncation


class EmbeddingFactorizer(Factorizer):
    """``Embedding(V, n)`` becomes ``Embedding(V, r)`` and ``Dense(n, no bias, linear)``.

    The mask of zeros is computed by the first one, and the second one passes it on.
    """

    kind = "Embedding"

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""

        def outputs(indices: Any) -> Any:
            import tensorflow as tf

            rows = tf.gather(layer.embeddings, tf.reshape(tf.cast(indices, tf.int32), [-1]))
            return tf.reshape(rows, (-1, 1, layer.output_dim))

        return (
            Kernel(
                name="",
                m=layer.input_dim,
                n=layer.output_dim,
                layer=layer,
                variable=layer.embeddings,
                read=one_matrix,
                outputs=outputs,
                positions=count_positions(output_shape(layer)[1:-1]),
                has_bias=False,
                looked_up=True,
                gradient_at="output",
            ),
        )

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        first, *others = (matrices[0] for matrices in truncation.matrices)
        *names, last = *head_names(layer.name, len(others)), layer.name
        regularizer = layer.embeddings_regularizer
        head = rebuild(
            layer,
            None,
            [first],
            name=names[0],
            output_dim=first.shape[1],
            embeddings_constraint=None,
            activity_regularizer=None,
        )
        middle = [
            linear_dense(layer, name, matrix, kernel_regularizer=regularizer)
            for name, matrix in zip(names[1:], others[:-1], strict=True)
        ]
        tail = linear_dense(
            layer,
            last,
            others[-1],
            kernel_regularizer=regularizer,
            activity_regularizer=layer.activity_regularizer,
        )
        dense = (*middle, tail)
        weights = (head.embeddings, *(part.kernel for part in dense))
        return Replacement((head, *dense), {"": weights})
