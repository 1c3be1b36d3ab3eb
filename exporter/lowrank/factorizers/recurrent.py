"""Recurrent layers: the map from their inputs, not the one from their states."""

from collections.abc import Mapping
from typing import Any

from exporter.graph.layers import input_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, head_names, linear_dense, other_params
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix, times
from exporter.lowrank.linalg.truncation import Truncation


class RecurrentFactorizer(Factorizer):
    """``LSTM(u)`` becomes ``Dense(r, no bias, linear)`` at every step, and ``LSTM(u)``.

    Dropout of the inputs acts on the r latent ones.
    """

    def __init__(self, kind: str) -> None:
        """Args: kind: ``LSTM`` or ``GRU``."""
        self.kind = kind

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        kernel = layer.cell.kernel
        m, n = kernel.shape
        return (
            Kernel(
                name="",
                m=m,
                n=n,
                layer=layer,
                variable=kernel,
                read=one_matrix,
                outputs=lambda inputs: times(inputs, kernel),
                positions=count_positions(input_shape(layer)[1:-1]),
                has_bias=layer.use_bias,
                other_params=other_params(layer, kernel),
                gradient_at=None,
            ),
        )

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        *thin, last = (matrices[0] for matrices in truncation.matrices)
        heads = [
            linear_dense(layer, name, matrix, kernel_regularizer=layer.kernel_regularizer)
            for name, matrix in zip(head_names(layer.name, len(thin)), thin, strict=True)
        ]
        weights = [last, layer.cell.recurrent_kernel.numpy()]
        if layer.use_bias:
            bias = layer.cell.bias.numpy().copy()
            if truncation.bias_shift is not None:
                # A GRU may have two biases: of the inputs, and of the states.
                inputs = bias if bias.ndim == 1 else bias[0]
                inputs += truncation.bias_shift[0]
            weights.append(bias)
        shape = (*input_shape(layer)[:-1], len(last))
        tail = rebuild(layer, shape, weights, kernel_constraint=None)
        kernels = (*(head.kernel for head in heads), tail.cell.kernel)
        return Replacement((*heads, tail), {"": kernels})
