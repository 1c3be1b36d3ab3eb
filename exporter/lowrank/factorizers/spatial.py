"""Conv2D by k x 1 and 1 x k: an alternative to k x k and 1 x 1 where the filters are separable."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from exporter.graph.layers import input_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import head_names, shifted
from exporter.lowrank.factorizers.convolution import (
    LINEAR,
    ConvolutionFactorizer,
    convolve,
    pointwise,
)
from exporter.lowrank.kernels import Kernel, count_positions
from exporter.lowrank.linalg.truncation import Truncation


class SpatialFactorizer(ConvolutionFactorizer):
    """``Conv2D(n, (h, w))`` becomes ``Conv2D(r, (h, 1), no bias)`` and ``Conv2D(n, (1, w))``.

    The matrix has h times the input channels as rows and w times the filters as columns (Jaderberg
    et al., 2014). The first convolution takes the vertical part of strides, padding and dilation,
    the second one the horizontal part. Unmerged, S is a 1 x 1 convolution between them.
    """

    convolution = "spatial"

    def __init__(self) -> None:
        super().__init__("Conv2D")

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.groups > 1 or 1 in layer.kernel_size:
            return "has groups, or a kernel of one row or column"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        height, width, channels, filters = layer.kernel.shape
        m, n = height * channels, width * filters
        shape = _vertical_shape(layer, filters)
        sizes = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
        return (
            SpatialKernel(
                m=m,
                n=n,
                read=lambda array: array.transpose(0, 2, 1, 3).reshape(1, m, n),
                **self.common(layer, layer.kernel, functools.partial(convolve, layer)),
                middle_positions=count_positions(sizes),
            ),
        )

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        first, *middle, last = truncation.matrices
        height, width, channels, filters = layer.kernel.shape
        rank = first.shape[2]
        names = head_names(layer.name, 1 + len(middle))
        head = rebuild(
            layer,
            input_shape(layer),
            [first.reshape(height, 1, channels, rank)],
            **_vertical(layer),
            name=names[0],
            filters=rank,
            kernel_constraint=None,
            **LINEAR,
        )
        scales = [
            pointwise(layer, matrices, name=name, **LINEAR)
            for name, matrices in zip(names[1:], middle, strict=True)
        ]
        kernel = last.reshape(rank, width, filters).swapaxes(0, 1)
        tail = rebuild(
            layer,
            _vertical_shape(layer, rank),
            [kernel[None]] + ([shifted(layer.bias, truncation)] if layer.use_bias else []),
            kernel_size=(1, width),
            strides=(1, layer.strides[1]),
            dilation_rate=(1, layer.dilation_rate[1]),
            kernel_constraint=None,
        )
        layers = (head, *scales, tail)
        return Replacement(layers, {"": tuple(part.kernel for part in layers)})


@dataclass(frozen=True)
class SpatialKernel(Kernel):
    """Two factors of which the first is applied more often, where there are horizontal strides.

    Attributes:
        middle_positions: How often the first one is applied in one call on one sample.
    """

    middle_positions: int = 1

    data_aware: ClassVar[bool] = False

    def macs(self, rank: int | None, *, merge: bool = True) -> int:
        """See the base class."""
        if rank is None:
            return super().macs(rank, merge=merge)
        head = rank * self.m + (0 if merge else rank**2)
        return self.middle_positions * head + self.positions * rank * self.n


def _vertical(layer: Any) -> dict[str, Any]:
    return {
        "kernel_size": (layer.kernel_size[0], 1),
        "strides": (layer.strides[0], 1),
        "dilation_rate": (layer.dilation_rate[0], 1),
    }


def _vertical_shape(layer: Any, filters: int) -> tuple[int | None, ...]:
    """Returns the shape between the two convolutions."""
    config = {**layer.get_config(), **_vertical(layer), "filters": filters}
    shape: tuple[int | None, ...] = (
        type(layer).from_config(config).compute_output_shape(input_shape(layer))
    )
    return shape
