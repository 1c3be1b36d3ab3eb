"""Convolutions of any dimension: one to r channels, then one of 1 x 1 to all of them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from exporter.graph.layers import causal_padding, input_shape, output_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import (
    Convolution,
    Factorizer,
    head_names,
    other_params,
    shifted,
)
from exporter.lowrank.kernels import Kernel, count_positions
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation

LINEAR: dict[str, Any] = {
    "use_bias": False,
    "activation": "linear",
    "bias_regularizer": None,
    "bias_constraint": None,
    "activity_regularizer": None,
}
"""What a convolution is changed by that comes before the last one."""

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
"""What a 1 x 1 convolution takes over from the configuration of a layer of another kind."""


class ConvolutionFactorizer(Factorizer):
    """``Conv(n, k)`` becomes ``Conv(r, k, no bias, linear)`` and ``Conv(n, 1)``.

    The first one keeps strides, padding and dilation. Each group has its own r channels.
    """

    convolution: Convolution | None = "channel"

    def __init__(self, kind: str) -> None:
        """Args: kind: ``Conv1D``, ``Conv2D`` or ``Conv3D``."""
        self.kind = kind

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        shape, groups = layer.kernel.shape, layer.groups
        return (
            Kernel(
                m=prod(shape[:-1]),
                n=layer.filters // groups,
                read=functools.partial(split_groups, groups=groups),
                **self.common(layer, layer.kernel, functools.partial(convolve, layer)),
                groups=groups,
            ),
        )

    def common(self, layer: Any, variable: Any, apply: Any) -> dict[str, Any]:
        """Returns what the kernels of all convolutions have in common.

        Args:
            layer: The layer.
            variable: Its weight that is factorized.
            apply: What it does with a tensor, before bias and activation.
        """
        groups = getattr(layer, "groups", 1)

        def outputs(inputs: Any) -> Any:
            import tensorflow as tf

            rows = apply(inputs)
            if layer.data_format == "channels_first":
                rows = tf.experimental.numpy.moveaxis(rows, 1, -1)
            return tf.reshape(rows, (-1, groups, layer.filters // groups))

        return {
            "name": "",
            "layer": layer,
            "variable": variable,
            "outputs": outputs,
            "positions": count_positions(spatial_sizes(layer, output_shape(layer))),
            "has_bias": layer.use_bias,
            "other_params": other_params(layer, variable),
            # Gradients are read as if the channels came last.
            "gradient_at": "activation" if layer.data_format == "channels_last" else None,
        }

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        first, *middle, last = truncation.matrices
        names = head_names(layer.name, 1 + len(middle))
        head = self.head(layer, names[0], first)
        scales = [
            pointwise(layer, matrices, name=name, **LINEAR)
            for name, matrices in zip(names[1:], middle, strict=True)
        ]
        layers = (head, *scales, pointwise(layer, last, truncation))
        weights = (self.weight(head), *(part.kernel for part in layers[1:]))
        return Replacement(layers, {"": weights})

    def head(self, layer: Any, name: str, matrices: Floats) -> Any:
        """Builds the convolution to r channels.

        Args:
            layer: The original.
            name: Of the convolution.
            matrices: g x m x r.
        """
        return rebuild(
            layer,
            input_shape(layer),
            [join_groups(matrices, layer.kernel.shape[:-1])],
            name=name,
            filters=matrices.shape[0] * matrices.shape[2],
            kernel_constraint=None,
            **LINEAR,
        )

    def weight(self, head: Any) -> Any:
        """Returns the weight of ``head`` that holds the first factor."""
        return head.kernel


class TransposedFactorizer(ConvolutionFactorizer):
    """``ConvTranspose(n, k)`` becomes ``ConvTranspose(r, k, no bias, linear)`` and ``Conv(n, 1)``.

    The first one keeps strides, padding and dilation.
    """

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        *size, filters, channels = layer.kernel.shape
        return (
            TransposedKernel(
                m=prod(size) * channels,
                n=filters,
                read=lambda array: array.swapaxes(-1, -2).reshape(1, -1, filters),
                **self.common(layer, layer.kernel, functools.partial(_convolve_transposed, layer)),
                input_positions=count_positions(spatial_sizes(layer, input_shape(layer))),
            ),
        )

    def head(self, layer: Any, name: str, matrices: Floats) -> Any:
        """See the base class."""
        *size, _, channels = layer.kernel.shape
        kernel = join_groups(matrices, (*size, channels)).swapaxes(-1, -2)
        return rebuild(
            layer,
            input_shape(layer),
            [kernel],
            name=name,
            filters=matrices.shape[2],
            kernel_constraint=None,
            **LINEAR,
        )


@dataclass(frozen=True)
class TransposedKernel(Kernel):
    """A kernel that is applied once for every input, not for every output.

    Attributes:
        input_positions: How often it is applied in one call on one sample.
    """

    input_positions: int = 1

    def macs(self, rank: int | None, *, merge: bool = True) -> int:
        """See the base class."""
        if rank is None:
            return self.input_positions * self.m * self.n
        tail = rank * self.n + (0 if merge else rank**2)
        return self.input_positions * self.m * rank + self.positions * tail


class SeparableFactorizer(ConvolutionFactorizer):
    """``SeparableConv(n)`` becomes ``SeparableConv(r, no bias, linear)`` and ``Conv(n, 1)``.

    Only the map between channels is cut. The filter of each channel stays as it is.
    """

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if layer.data_format == "channels_first":
            return "TensorFlow has no channels-first convolution on CPUs that could follow it"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        weight = layer.pointwise_kernel
        return (
            Kernel(
                m=weight.shape[-2],
                n=weight.shape[-1],
                read=functools.partial(split_groups, groups=1),
                **self.common(layer, weight, functools.partial(_convolve_separably, layer)),
            ),
        )

    def head(self, layer: Any, name: str, matrices: Floats) -> Any:
        """See the base class."""
        weight = layer.pointwise_kernel
        return rebuild(
            layer,
            input_shape(layer),
            [layer.depthwise_kernel.numpy(), join_groups(matrices, weight.shape[:-1])],
            name=name,
            filters=matrices.shape[2],
            pointwise_constraint=None,
            **LINEAR,
        )

    def weight(self, head: Any) -> Any:
        """See the base class."""
        return head.pointwise_kernel


def pointwise(
    layer: Any, matrices: Floats, truncation: Truncation | None = None, **changes: Any
) -> Any:
    """Builds the 1 x 1 convolution that comes after others in the place of a layer.

    Args:
        layer: The original.
        matrices: g x a x b.
        truncation: Says how the bias moves, for the last convolution.
        changes: Entries of the configuration, which is otherwise the original's.
    """
    import keras

    groups, inputs, filters = matrices.shape
    dimensions = len(layer.kernel_size)
    config = layer.get_config()
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


def spatial_sizes(layer: Any, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Returns the sizes that are neither of the batch nor of the channels."""
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


def split_groups(array: Any, *, groups: int) -> Any:
    """Reads ``... x inputs x (groups * n)`` as g x m x n: the outputs of a group are adjacent."""
    return array.reshape(-1, groups, array.shape[-1] // groups).swapaxes(0, 1)


def join_groups(matrices: Floats, shape: tuple[int, ...]) -> Floats:
    """Undoes ``split_groups``, given the axes of the inputs."""
    joined: Floats = matrices.swapaxes(0, 1).reshape(*shape, -1)
    return joined


def convolve(layer: Any, inputs: Any) -> Any:
    """Applies the kernel of a convolution alone."""
    import keras

    padding = layer.padding
    if padding == "causal":
        inputs, padding = keras.ops.pad(inputs, causal_padding(layer)), "valid"
    return keras.ops.conv(
        inputs,
        keras.ops.cast(layer.kernel, inputs.dtype),
        strides=layer.strides,
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _convolve_transposed(layer: Any, inputs: Any) -> Any:
    import keras

    return keras.ops.conv_transpose(
        inputs,
        keras.ops.cast(layer.kernel, inputs.dtype),
        strides=layer.strides,
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _convolve_separably(layer: Any, inputs: Any) -> Any:
    import keras

    return keras.ops.separable_conv(
        inputs,
        keras.ops.cast(layer.depthwise_kernel, inputs.dtype),
        keras.ops.cast(layer.pointwise_kernel, inputs.dtype),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
