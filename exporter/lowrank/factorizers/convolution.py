"""Convolutions of any dimension: one to r channels, then one of 1 x 1 to all of them."""

import functools
from math import prod
from typing import Any

from exporter.graph.hooks import replaced
from exporter.graph.layers import configuration, input_shape, output_shape, rebuild
from exporter.lowrank.factorizers.base import (
    LINEAR,
    Convolution,
    Factorizer,
    Shape,
    shifted,
    weight_of,
)
from exporter.lowrank.kernels import Kernel, count_positions
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation

_KEPT = (
    "name",
    "trainable",
    "dtype",
    "data_format",
    "activation",
    "use_bias",
    "kernel_initializer",
    "kernel_regularizer",
    "bias_initializer",
    "bias_regularizer",
    "bias_constraint",
    "activity_regularizer",
)
"""The configuration that a 1 x 1 convolution takes over from a layer of another kind."""


class ConvolutionFactorizer(Factorizer):
    """``Conv(n, k)`` becomes ``Conv(r, k, no bias, linear)`` and ``Conv(n, 1)``.

    The first one keeps strides, padding and dilation. Each group has its own r channels.
    """

    convolution: Convolution | None = "channel"
    constraint = "kernel_constraint"
    """The constraint of the kernel that is factorized, in the configuration."""

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        groups = layer.groups
        kernel = Kernel(
            m=prod(layer.kernel.shape[:-1]),
            n=layer.filters // groups,
            read=functools.partial(split_groups, groups=groups),
            **self.common(layer),
            groups=groups,
        )
        return (kernel,)

    def common(self, layer: Any) -> dict[str, Any]:
        """Returns the arguments that the kernels of all convolutions share."""
        groups = getattr(layer, "groups", 1)
        # What the layer does beside the convolution.
        others = {"use_bias": False, "activation": None, "activity_regularizer": None}
        patches: list[Any] = [(layer, name, value) for name, value in others.items()]

        def outputs(inputs: Any) -> Any:
            import tensorflow as tf

            with replaced(patches):
                rows = layer(inputs)
            if layer.data_format == "channels_first":
                rows = tf.experimental.numpy.moveaxis(rows, 1, -1)
            return tf.reshape(rows, (-1, groups, layer.filters // groups))

        return {
            "layer": layer,
            "variable": weight_of(layer),
            "outputs": outputs,
            "positions": positions(layer, output_shape(layer)),
            "has_bias": layer.use_bias,
            # Gradients are read as if the channels came last.
            "gradient_at": "activation" if layer.data_format == "channels_last" else None,
        }

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class; builds the linear convolution to g * r channels."""
        filters = matrices.shape[0] * matrices.shape[2]
        changes = LINEAR | {"filters": filters, self.constraint: None}
        return rebuild(layer, shape, self.head_weights(layer, matrices), name=name, **changes)

    def head_weights(self, layer: Any, matrices: Floats) -> list[Any]:
        """Returns the weights of the first layer, given the first factor, g x m x r."""
        return [join_groups(matrices, layer.kernel.shape[:-1])]

    def middle(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        return pointwise(layer, matrices, name=name, **LINEAR)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        return pointwise(layer, truncation.matrices[-1], truncation)


class TransposedFactorizer(ConvolutionFactorizer):
    """``ConvTranspose(n, k)`` becomes ``ConvTranspose(r, k, no bias, linear)`` and ``Conv(n, 1)``.

    The first one keeps strides, padding and dilation.
    """

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        *size, filters, channels = layer.kernel.shape
        # The kernel is multiplied once for every input, not for every output.
        before, after = (positions(layer, shape(layer)) for shape in (input_shape, output_shape))
        kernel = Kernel(
            m=prod(size) * channels,
            n=filters,
            read=lambda array: array.swapaxes(-1, -2).reshape(1, -1, filters),
            **self.common(layer),
            applied=(before, before, after, after),
        )
        return (kernel,)

    def head_weights(self, layer: Any, matrices: Floats) -> list[Any]:
        """See the base class."""
        *size, _, channels = layer.kernel.shape
        return [join_groups(matrices, (*size, channels)).swapaxes(-1, -2)]


class SeparableFactorizer(ConvolutionFactorizer):
    """``SeparableConv(n)`` becomes ``SeparableConv(r, no bias, linear)`` and ``Conv(n, 1)``.

    Only the map between channels is factorized. The filter of each channel stays as it is.
    """

    constraint = "pointwise_constraint"

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.data_format == "channels_first":
            return "TensorFlow has no channels-first convolution on CPUs that could follow it"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        *_, m, n = layer.pointwise_kernel.shape
        read = functools.partial(split_groups, groups=1)
        return (Kernel(m=m, n=n, read=read, **self.common(layer)),)

    def head_weights(self, layer: Any, matrices: Floats) -> list[Any]:
        """See the base class."""
        kernel = join_groups(matrices, layer.pointwise_kernel.shape[:-1])
        return [layer.depthwise_kernel.numpy(), kernel]


def pointwise(
    layer: Any, matrices: Floats, truncation: Truncation | None = None, **changes: Any
) -> Any:
    """Builds a 1 x 1 convolution in the place of a layer, with a kernel of g x a x b.

    The truncation, which the last convolution has, tells the shift of the bias. The configuration
    is that of the layer, with changes.
    """
    import keras

    groups, inputs, filters = matrices.shape
    dimensions = len(layer.kernel_size)
    config = configuration(layer)
    # Separable convolutions have two kernels, and this one takes the place of the second.
    config |= {
        name.replace("pointwise", "kernel"): value
        for name, value in config.items()
        if name.startswith("pointwise")
    }
    built = getattr(keras.layers, f"Conv{dimensions}D").from_config(
        {name: config[name] for name in _KEPT}
        | {"filters": groups * filters, "kernel_size": 1, "groups": groups}
        | changes
    )
    sizes = (None,) * dimensions
    channels = groups * inputs
    last = layer.data_format == "channels_last"
    built.build((None, *sizes, channels) if last else (None, channels, *sizes))
    weights = [join_groups(matrices, (1,) * dimensions + (inputs,))]
    if truncation is not None and layer.use_bias:
        weights.append(shifted(layer.bias, truncation))
    built.set_weights(weights)
    return built


def positions(layer: Any, shape: Shape) -> int:
    """Counts the elements of a shape along the axes of the window."""
    return count_positions(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])


def split_groups(array: Any, *, groups: int) -> Any:
    """Reads ``... x inputs x (groups * n)`` as g x m x n: the outputs of a group are adjacent."""
    return array.reshape(-1, groups, array.shape[-1] // groups).swapaxes(0, 1)


def join_groups(matrices: Floats, shape: tuple[int, ...]) -> Floats:
    """Undoes ``split_groups``, given the axes of the inputs."""
    joined: Floats = matrices.swapaxes(0, 1).reshape(*shape, -1)
    return joined
