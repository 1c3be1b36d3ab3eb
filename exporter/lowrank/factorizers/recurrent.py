"""Recurrent layers: the map from their inputs, not the one from their states."""

from typing import Any

from exporter.graph.layers import input_shape, rebuild
from exporter.lowrank.factorizers.base import Factorizer, Shape
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix, times
from exporter.lowrank.linalg.truncation import Truncation


class RecurrentFactorizer(Factorizer):
    """``LSTM(u)`` becomes ``Dense(r, no bias, linear)`` at every step, and ``LSTM(u)``.

    Dropout of the inputs acts on the r latent ones.
    """

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        variable = layer.cell.kernel
        m, n = variable.shape
        kernel = Kernel(
            m=m,
            n=n,
            layer=layer,
            variable=variable,
            read=one_matrix,
            outputs=lambda inputs: times(inputs, variable),
            positions=count_positions(input_shape(layer)[1:-1]),
            has_bias=layer.use_bias,
            gradient_at=None,
        )
        return (kernel,)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        weights = [truncation.matrices[-1][0], layer.cell.recurrent_kernel.numpy()]
        if layer.use_bias:
            bias = layer.cell.bias.numpy().copy()
            if truncation.bias_shift is not None:
                # A GRU may have two biases: of the inputs, and of the states.
                inputs = bias if bias.ndim == 1 else bias[0]
                inputs += truncation.bias_shift[0]
            weights.append(bias)
        return rebuild(layer, shape, weights, kernel_constraint=None)
