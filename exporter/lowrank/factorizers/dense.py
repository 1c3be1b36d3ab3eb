"""Dense layers."""

from collections.abc import Mapping
from typing import Any

from exporter.graph.layers import output_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, head_names, linear_dense, shifted
from exporter.lowrank.kernels import Kernel, count_positions, one_matrix, times
from exporter.lowrank.linalg.truncation import Truncation


class DenseFactorizer(Factorizer):
    """``Dense(n)`` becomes ``Dense(r, no bias, linear)`` and ``Dense(n)``."""

    kind = "Dense"

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        m, n = layer.kernel.shape
        return (
            Kernel(
                name="",
                m=m,
                n=n,
                layer=layer,
                variable=layer.kernel,
                read=one_matrix,
                outputs=lambda inputs: times(inputs, layer.kernel),
                positions=count_positions(output_shape(layer)[1:-1]),
                has_bias=layer.use_bias,
                other_params=n if layer.use_bias else 0,
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
        weights = [last]
        if layer.use_bias:
            weights.append(shifted(layer.bias, truncation))
        tail = rebuild(layer, (None, len(last)), weights, kernel_constraint=None)
        layers = (*heads, tail)
        return Replacement(layers, {"": tuple(part.kernel for part in layers)})
