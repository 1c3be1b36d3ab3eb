"""What exporter is to know of the layer."""

from exporter import Factorizer, Kernel, LayerKind
from exporter.graph.layers import output_shape
from exporter.lowrank.factorizers.base import linear_dense, shifted
from exporter.lowrank.kernels import count_positions, one_matrix, times
from exporter_example.layers import ScaledDense

KINDS = {ScaledDense: LayerKind(output_axes=(-1,), folds=True, is_product=True)}


class ScaledDenseFactorizer(Factorizer):
    """``ScaledDense(n)`` becomes two Dense layers, whose product has the constant in it."""

    def kernels(self, layer):
        m, n = layer.kernel.shape
        kernel = Kernel(
            m=m,
            n=n,
            layer=layer,
            variable=layer.kernel,
            read=lambda array: layer.scale * one_matrix(array),
            outputs=lambda inputs: layer.scale * times(inputs, layer.kernel),
            positions=count_positions(output_shape(layer)[1:-1]),
            has_bias=layer.use_bias,
        )
        return (kernel,)

    def head(self, layer, name, matrices, shape):
        return linear_dense(layer, name, matrices[0])

    def tail(self, layer, truncation, shape):
        last = truncation.matrices[-1][0]
        bias = shifted(layer.bias, truncation) if layer.use_bias else None
        return linear_dense(layer, layer.name, last, bias, activation=layer.activation)


SCALED_DENSE = ScaledDenseFactorizer(ScaledDense)
