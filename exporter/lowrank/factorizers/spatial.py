"""Conv2D by k x 1 and 1 x k: an alternative to k x k and 1 x 1 where the filters are separable."""

from typing import Any

from exporter.graph.layers import configuration, input_shape, rebuild
from exporter.lowrank.factorizers.base import LINEAR, Shape, shifted
from exporter.lowrank.factorizers.convolution import ConvolutionFactorizer, positions
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation


class SpatialFactorizer(ConvolutionFactorizer):
    """``Conv2D(n, (h, w))`` becomes ``Conv2D(r, (h, 1), no bias)`` and ``Conv2D(n, (1, w))``.

    The matrix has h times the input channels as rows and w times the filters as columns (Jaderberg
    et al., 2014). The first convolution takes the vertical part of strides, padding and dilation,
    the second one the horizontal part. Unmerged, S is a 1 x 1 convolution between them.
    """

    convolution = "spatial"

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.groups > 1 or 1 in layer.kernel_size:
            return "has groups, or a kernel of one row or column"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        height, width, channels, filters = layer.kernel.shape
        m, n = height * channels, width * filters
        config = {**configuration(layer), **_vertical(layer)}
        between = type(layer).from_config(config).compute_output_shape(input_shape(layer))
        common = self.common(layer)
        # Where there are horizontal strides, the first factor is multiplied more often.
        first, last = positions(layer, between), common["positions"]
        kernel = Kernel(
            m=m,
            n=n,
            read=lambda array: array.transpose(0, 2, 1, 3).reshape(1, m, n),
            **common,
            applied=(last, first, first, last),
            data_aware=False,
        )
        return (kernel,)

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        height, _, channels, _ = layer.kernel.shape
        rank = matrices.shape[2]
        weights = [matrices.reshape(height, 1, channels, rank)]
        changes = LINEAR | _vertical(layer) | {"filters": rank, "kernel_constraint": None}
        return rebuild(layer, shape, weights, name=name, **changes)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        _, width, _, filters = layer.kernel.shape
        kernel = truncation.matrices[-1].reshape(-1, width, filters).swapaxes(0, 1)
        return rebuild(
            layer,
            shape,
            [kernel[None]] + ([shifted(layer.bias, truncation)] if layer.use_bias else []),
            kernel_size=(1, width),
            strides=(1, layer.strides[1]),
            dilation_rate=(1, layer.dilation_rate[1]),
            kernel_constraint=None,
        )


def _vertical(layer: Any) -> dict[str, Any]:
    return {
        "kernel_size": (layer.kernel_size[0], 1),
        "strides": (layer.strides[0], 1),
        "dilation_rate": (layer.dilation_rate[0], 1),
    }
