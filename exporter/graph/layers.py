"""Knows the kinds of Keras layers; reads, calls and rebuilds single ones.

Whatever is private in Keras and needed of a single layer is read here.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from exporter.graph.types import Layer, Tensor


@dataclass(frozen=True)
class ActivationKind:
    """What is known of an activation function of Keras.

    Attributes:
        homogeneous: Whether f(s x) = s f(x) for every s > 0.
        fused: Whether integer runtimes compute it within a linear layer, before they round.
        probabilities: ``"categorical"`` or ``"bernoulli"`` if it makes probabilities of logits.
    """

    homogeneous: bool = False
    fused: bool = False
    probabilities: Literal["categorical", "bernoulli"] | None = None


ACTIVATIONS = {
    "linear": ActivationKind(homogeneous=True, fused=True),
    "relu": ActivationKind(homogeneous=True, fused=True),
    "leaky_relu": ActivationKind(homogeneous=True),
    "relu6": ActivationKind(fused=True),
    "softmax": ActivationKind(probabilities="categorical"),
    "sigmoid": ActivationKind(probabilities="bernoulli"),
}
"""By name of the function."""


@dataclass(frozen=True)
class LayerKind:
    """What is known of a Keras layer class.

    Attributes:
        output_axes: Axes of the last kernel such that scaling the kernel along them scales the
            outputs; empty if the layer does not just multiply by kernels.
        folds: Whether the indices along these axes are the channels of the output, so that the
            kernel can take up the batch normalization of them.
        is_product: Whether the layer has one kernel, ending with the axes inputs x outputs, which
            multiplies the channels of the input, or windows of them.
        holds_factor: Whether ``lowrank`` may have made its kernel one of several factors.
        in_four_bits: Whether LiteRT multiplies by its last kernel in 4 bits.
        passes: Tells whether a layer of this kind keeps channels apart, in their order, scaled as
            they are, and keeps the largest positive value of each; None if no such layer does.
        activation: What its function is, if it has no other.
        scales_input: Whether it rescales data, as the first layer of a model.
        finalized: Whether it computes with what ``finalize_state`` derives from its weights.
        kept: Why it is not factorized; empty where a factorizer tells.
    """

    output_axes: tuple[int, ...] = ()
    folds: bool = False
    is_product: bool = False
    holds_factor: bool = False
    in_four_bits: bool = False
    passes: Callable[[Layer], bool] | None = None
    activation: ActivationKind | None = None
    scales_input: bool = False
    finalized: bool = False
    kept: str = ""


_PRODUCT = LayerKind(
    output_axes=(-1,), folds=True, is_product=True, holds_factor=True, in_four_bits=True
)
_TRANSPOSED = LayerKind(output_axes=(-2,), folds=True)
_SEPARABLE = LayerKind(output_axes=(-1,), folds=True, in_four_bits=True)
_DEPTHWISE = LayerKind(
    output_axes=(-2, -1), folds=True, kept="each output takes one channel: nothing to factorize"
)
_PASSING = LayerKind(passes=lambda layer: True)
_NO_MATRIX = LayerKind(kept="has no matrix, only one factor a channel")
_WRAPPER = LayerKind(kept="the layer that it wraps is not looked into")

KINDS = {
    "Dense": _PRODUCT,
    "Conv1D": _PRODUCT,
    "Conv2D": _PRODUCT,
    "Conv3D": replace(_PRODUCT, in_four_bits=False),
    "EinsumDense": replace(_PRODUCT, folds=False, is_product=False),
    "Conv1DTranspose": _TRANSPOSED,
    "Conv2DTranspose": _TRANSPOSED,
    "Conv3DTranspose": _TRANSPOSED,
    "SeparableConv1D": _SEPARABLE,
    "SeparableConv2D": _SEPARABLE,
    "DepthwiseConv1D": _DEPTHWISE,
    "DepthwiseConv2D": _DEPTHWISE,
    "Activation": LayerKind(passes=lambda layer: activation_of(layer).homogeneous),
    "ReLU": LayerKind(passes=lambda layer: layer.max_value is None and not layer.threshold),
    "LeakyReLU": _PASSING,
    "Flatten": _PASSING,
    "Dropout": _PASSING,
    **{
        f"{name}{dimensions}D": _PASSING
        for name in ("MaxPooling", "ZeroPadding", "SpatialDropout")
        for dimensions in (1, 2, 3)
    },
    "Softmax": LayerKind(activation=ACTIVATIONS["softmax"]),
    "Rescaling": LayerKind(scales_input=True),
    "Normalization": replace(_NO_MATRIX, scales_input=True, finalized=True),
    "BatchNormalization": _NO_MATRIX,
    "LayerNormalization": _NO_MATRIX,
    "RMSNormalization": _NO_MATRIX,
    "GroupNormalization": _NO_MATRIX,
    "PReLU": _NO_MATRIX,
    "AdditiveAttention": _NO_MATRIX,
    "Attention": _NO_MATRIX,
    "Bidirectional": _WRAPPER,
    "TimeDistributed": _WRAPPER,
    "SpectralNormalization": LayerKind(kept="its kernel is scaled anew at every step of training"),
    "GroupQueryAttention": LayerKind(kept="takes the size of its output from that of the query"),
    "ReversibleEmbedding": LayerKind(kept="its matrix is used in both directions"),
}
"""By name in ``keras.layers``; tests/graph/test_layers.py proves each property."""


def kind_of(layer: Layer, *, inherited: bool = False) -> LayerKind:
    """Returns the row of a layer's class in ``KINDS``; an empty one if there is none.

    Args:
        layer: The layer.
        inherited: Whether a subclass of a class of Keras is of its kind: it may compute anything,
            but has the same methods.
    """
    classes = type(layer).__mro__ if inherited else (type(layer),)
    return next((_by_class()[c] for c in classes if c in _by_class()), LayerKind())


@functools.cache
def _by_class() -> dict[type, LayerKind]:
    import keras

    return {getattr(keras.layers, name): kind for name, kind in KINDS.items()}


def activation_of(layer: Layer) -> ActivationKind:
    """Returns what is known of a layer's activation; a layer without one is linear."""
    function = getattr(layer, "activation", None)
    name = "linear" if function is None else getattr(function, "__name__", "")
    own = kind_of(layer, inherited=True).activation
    return own or ACTIVATIONS.get(name, ActivationKind())


def is_channels_last(layer: Layer) -> bool:
    """Tells whether the last axis of what a layer takes and gives is that of the channels."""
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def finalize(layer: Layer) -> None:
    """Has a layer derive what it computes with from weights that were set."""
    if kind_of(layer, inherited=True).finalized:
        layer.finalize_state()


def unsupported_feature(layer: Layer) -> str:
    """Says what a layer holds beside a plain kernel; empty if nothing."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized already"
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA adapter beside its kernel"
    return ""


def called_with(layer: Layer) -> dict[str, Any]:
    """Returns what the layer is called with, by argument name, the first time in its graph."""
    arguments = layer._inbound_nodes[0].arguments
    bound = inspect.signature(layer.call).bind(*arguments.args, **arguments.kwargs)
    return dict(bound.arguments)


def output_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first output, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].outputs[0].shape)


def input_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first input, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].input_tensors[0].shape)


def output_tensors(layer: Layer) -> list[Tensor]:
    """Returns the layer's outputs, the first time in its graph; none if it is not called."""
    return [tensor for node in layer._inbound_nodes[:1] for tensor in node.outputs]


def with_parts(layer: Layer) -> list[Layer]:
    """Returns the layer and all layers inside it, at any depth, the outer ones first."""
    return list(layer._flatten_layers())


def causal_padding(layer: Layer) -> list[list[int]]:
    """Returns how far a causal convolution pads each axis of its input, before and after."""
    padding: list[list[int]] = layer._compute_causal_padding()
    return padding


def attention_options(layer: Layer, *names: str) -> dict[str, Any]:
    """Returns arguments that a ``MultiHeadAttention`` was made with, by name."""
    return {name: getattr(layer, f"_{name}") for name in names}


def rebuild(original: Layer, input_shape: Any, weights: list[Any], **changes: Any) -> Layer:
    """Builds a layer from the original's configuration, with changes, and sets its weights.

    Args:
        original: The layer that is copied.
        input_shape: With the batch axis.
        weights: Arrays in the order of ``layer.weights``.
        changes: Entries of the configuration.
    """
    layer = type(original).from_config({**original.get_config(), **changes})
    layer.build(input_shape)
    layer.set_weights(weights)
    return layer
