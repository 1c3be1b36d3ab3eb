"""Dense layers."""

from typing import Any

from exporter.graph.layers import output_shape, rebuild
from exporter.lowrank.factorizers.base import Factorizer, Shape, shifted
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix, times
from exporter.lowrank.linalg.truncation import Truncation


class DenseFactorizer(Factorizer):
    """``Dense(n)`` becomes ``Dense(r, no bias, linear)`` and ``Dense(n)``."""

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        m, n = layer.kernel.shape
        kernel = Kernel(
            m=m,
            n=n,
            layer=layer,
            variable=layer.kernel,
            read=one_matrix,
            outputs=lambda inputs: times(inputs, layer.kernel),
            positions=count_positions(output_shape(layer)[1:-1]),
            has_bias=layer.use_bias,
        )
        return (kernel,)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        last = truncation.matrices[-1][0]
        weights = [last, shifted(layer.bias, truncation)] if layer.use_bias else [last]
        return rebuild(layer, (None, len(last)), weights, kernel_constraint=None)
