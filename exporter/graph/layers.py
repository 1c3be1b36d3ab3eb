"""Knows the kinds of Keras layers; reads single layers, private attributes included."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from exporter import plugins
from exporter.errors import ModelError
from exporter.graph.calls import Call, first_call, obstacle
from exporter.graph.hooks import replaced
from exporter.graph.types import Layer, Tensor

Probabilities = Literal["categorical", "bernoulli"]
"""Those of a softmax, along the last axis, and those of a sigmoid."""


@dataclass(frozen=True)
class ActivationKind:
    """The properties of an activation function of Keras.

    Attributes:
        homogeneous: Whether f(s x) = s f(x) for every s > 0.
        fused: Whether integer runtimes compute it within a linear layer, before they round.
        probabilities: Which it makes of logits, if it does.
    """

    homogeneous: bool = False
    fused: bool = False
    probabilities: Probabilities | None = None


ChannelRole = Literal[
    "product", "transposed", "depthwise", "scaled", "apart", "reshaped", "merged", "joined"
]
"""What a layer does with the channels of its input, the elements along the last axis:

- ``product``, ``transposed``: multiplies them by a kernel ... x inputs x outputs, or the reverse;
- ``depthwise``: makes ``depth_multiplier`` channels of each;
- ``scaled``: has weights with one element for each; ``apart``: has none, and mixes none;
- ``reshaped``: keeps the order of all elements;
- ``merged``, ``joined``: takes several tensors, element by element or one after the other.
"""


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
    """The properties of a Keras layer class.

    Attributes:
        output_axes: Axes of the last kernel such that scaling the kernel along them scales the
            outputs; empty if the layer does more than multiply by kernels.
        folds: Whether the indices along these axes are the output channels, so that the kernel can
            absorb a batch normalization. The layer has ``activation``, ``bias`` and ``use_bias`` as
            Dense has them.
        is_product: Whether the layer has one kernel, ending with the axes inputs x outputs, which
            multiplies the channels of the input, or windows of them.
        holds_factor: Whether the kernel may be a factor made by ``lowrank``.
        in_four_bits: Whether LiteRT multiplies by its last kernel in 4 bits.
        passes: Tells whether a layer keeps channels apart, in their order and scale, and keeps the
            largest positive value of each; None if no layer of this kind does.
        activation: The function that the layer computes, if it has no other.
        scales_input: Whether it rescales data, as the first layer of a model.
        finalized: Whether it computes with values that ``finalize_state`` derives from its weights.
        entered: Whether the layers inside it are looked at, and replaced, each on its own.
        composed: Whether runtimes compute it by several operators, of which more than one may give
            nearly what the layer does.
        channels: What it does with channels; None if it mixes them, or nothing is known.
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
    entered: bool = False
    composed: bool = False
    channels: ChannelRole | None = None
    kept: str = ""

    @property
    def makes_channels(self) -> bool:
        """Whether it makes channels of its own, of those that its kernel multiplies."""
        return self.channels in ("product", "transposed")


_PRODUCT = LayerKind(
    output_axes=(-1,),
    folds=True,
    is_product=True,
    holds_factor=True,
    in_four_bits=True,
    channels="product",
)
_NO_MATRIX = LayerKind(kept="has no matrix, only one factor a channel")
_NORMALIZING = replace(_NO_MATRIX, composed=True)
_PASSING = LayerKind(passes=lambda layer: True, channels="apart")

_GROUPS = {
    "Dense Conv1D Conv2D": _PRODUCT,
    "Conv3D": replace(_PRODUCT, in_four_bits=False),
    "EinsumDense": replace(_PRODUCT, folds=False, is_product=False, channels=None),
    "Conv1DTranspose Conv2DTranspose Conv3DTranspose": LayerKind(
        output_axes=(-2,), folds=True, channels="transposed"
    ),
    "SeparableConv1D SeparableConv2D": LayerKind(output_axes=(-1,), folds=True, in_four_bits=True),
    "DepthwiseConv1D DepthwiseConv2D": LayerKind(
        output_axes=(-2, -1),
        folds=True,
        channels="depthwise",
        kept="each output takes one channel: nothing to factorize",
    ),
    "Activation": LayerKind(
        passes=lambda layer: activation_of(layer).homogeneous, channels="apart"
    ),
    "ReLU": LayerKind(
        passes=lambda layer: layer.max_value is None and not layer.threshold, channels="apart"
    ),
    "Flatten": replace(_PASSING, channels="reshaped"),
    "LeakyReLU Dropout MaxPooling1D MaxPooling2D MaxPooling3D ZeroPadding1D ZeroPadding2D "
    "ZeroPadding3D SpatialDropout1D SpatialDropout2D SpatialDropout3D": _PASSING,
    "ELU Identity GaussianNoise GaussianDropout AveragePooling1D AveragePooling2D AveragePooling3D "
    "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D "
    "GlobalMaxPooling2D GlobalMaxPooling3D UpSampling1D UpSampling2D UpSampling3D Cropping1D "
    "Cropping2D Cropping3D": LayerKind(channels="apart"),
    "Reshape": LayerKind(channels="reshaped"),
    "Add Subtract Multiply Average Maximum Minimum": LayerKind(channels="merged"),
    "Concatenate": LayerKind(channels="joined"),
    "Softmax": LayerKind(activation=ACTIVATIONS["softmax"]),
    "Rescaling": LayerKind(scales_input=True),
    "Normalization": replace(_NO_MATRIX, scales_input=True, finalized=True),
    "BatchNormalization PReLU": replace(_NORMALIZING, channels="scaled"),
    "LayerNormalization RMSNormalization GroupNormalization AdditiveAttention Attention": (
        _NORMALIZING
    ),
    "Bidirectional TimeDistributed": LayerKind(entered=True),
    "SpectralNormalization": LayerKind(kept="its kernel is scaled anew at every step of training"),
    "GroupQueryAttention": LayerKind(kept="takes the size of its output from that of the query"),
}

KINDS = {name: kind for names, kind in _GROUPS.items() for name in names.split()}
"""Kinds by class name in ``keras.layers``; tests/graph/test_layers.py proves each property."""


def kind_of(layer: Layer, *, inherited: bool = False) -> LayerKind:
    """Returns the row of a layer's class; an empty one if there is none.

    A subclass that adds something may compute anything, but has the same methods: it counts only
    if ``inherited``.
    """
    classes = type(layer).__mro__ if inherited else classes_of(layer)
    return next((kinds()[c] for c in classes if c in kinds()), LayerKind())


def classes_of(layer: Layer) -> list[type]:
    """Returns the class of a layer, and those of which it is a mere other name."""
    classes = type(layer).__mro__
    named = takewhile(_adds_nothing, classes)
    return list(classes[: 1 + len(list(named))])


@functools.cache
def _adds_nothing(kind: type) -> bool:
    own = {name for name in vars(kind) if not name.startswith("_api_export_")}  # Notes of Keras.
    return own <= {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"}


@functools.cache
def kinds() -> dict[type, LayerKind]:
    """Returns the rows of ``KINDS``, and those of other packages, by class.

    Raises:
        PluginError: If a row of another package cannot be used.
    """
    import keras

    table = {getattr(keras.layers, name): kind for name, kind in KINDS.items()}

    def add(found: Any) -> None:
        if not isinstance(found, Mapping):
            raise TypeError(f"it is no mapping of layer classes, but {type(found).__name__}")
        for key, kind in found.items():
            if not (isinstance(key, type) and issubclass(key, keras.Layer)):
                raise TypeError(f"{key!r} is no class of layers")
            if not isinstance(kind, LayerKind):
                raise TypeError(f"{key.__name__} has no exporter.LayerKind, but {kind!r:.80}")
            plugins.require_new(f"the class {key.__name__}", key if key in table else None)
        table.update(found)

    plugins.extend(plugins.LAYERS, add)
    plugins.check(plugins.LAYERS)
    return table


def activation_of(layer: Layer) -> ActivationKind:
    """Returns the properties of a layer's activation; a layer without one is linear."""
    function = getattr(layer, "activation", None)
    name = "linear" if function is None else _name(function)
    own = kind_of(layer, inherited=True).activation
    return own or ACTIVATIONS.get(name, ActivationKind())


def is_elementwise(activation: Callable[[Any], Any] | None) -> bool:
    """Tells whether an activation computes each element by itself, seen by trying it."""
    import keras
    import numpy as np

    if activation is None:
        return True
    values = np.linspace(-3.0, 3.0, 8, dtype=np.float32)[np.newaxis] ** 3
    try:
        whole, *parts = (
            keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(part)))
            for part in (values, values[:, :5], values[:, 5:])
        )
        return bool(np.allclose(whole, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-6))
    except Exception:  # A function of the user's, made for other shapes, may raise anything.
        return False


def is_channels_last(layer: Layer) -> bool:
    """Tells whether the last axis of a layer's inputs and outputs is that of the channels."""
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def refuse_channels_first(layers: Mapping[str, Layer]) -> None:
    """Raises a ModelError for a convolution that TensorFlow cannot compute without a GPU.

    On recent x86 processors oneDNN computes some of them, yet not in float64, as proofs need it.
    """
    import tensorflow as tf

    wanting = re.compile("Conv[12]D|Conv[123]DTranspose|ConvLSTM[123]D")
    found = [
        path
        for path, layer in layers.items()
        if wanting.fullmatch(type(layer).__name__)
        and not is_channels_last(layer)
        and getattr(layer, "groups", 1) == 1
    ]
    if found and not tf.config.list_physical_devices("GPU"):
        raise ModelError(
            "TensorFlow needs a GPU for convolutions with data_format='channels_first' in float64, "
            f"and this machine has none. Received: {', '.join(found)}. Build the layers with "
            "data_format='channels_last', which the same weights fit, and permute the input."
        )


def finalize(layer: Layer) -> None:
    """Updates values that a layer derives from its weights, after these were set."""
    if kind_of(layer, inherited=True).finalized:
        layer.finalize_state()


def unsupported_feature(layer: Layer) -> str:
    """Names a feature that keeps a layer from being a plain kernel; empty if there is none."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized already"
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA adapter beside its kernel"
    return obstacle(layer)


def called_with(layer: Layer) -> dict[str, Any]:
    """Returns the arguments of the layer's first call, by name."""
    call = _call(layer)
    return inspect.signature(layer.call).bind(*call.args, **call.kwargs).arguments


def is_called_once(layer: Layer) -> bool:
    """Tells whether a layer is called once in its graph, or inside another layer."""
    call = first_call(layer)
    return call is not None and max(len(layer._inbound_nodes), call.times) == 1


def output_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the first output of the layer's first call."""
    return tuple(_call(layer).outputs[0].shape)


def input_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the first input of the layer's first call."""
    return tuple(_call(layer).inputs[0].shape)


def input_shapes(layer: Layer) -> list[tuple[int | None, ...]]:
    """Returns the shapes of all inputs of the layer's first call."""
    return [tuple(tensor.shape) for tensor in _call(layer).inputs]


def output_tensors(layer: Layer) -> list[Tensor]:
    """Returns the outputs of the layer's first call; none if it is not called."""
    call = first_call(layer)
    return call.outputs if call else []


def _call(layer: Layer) -> Call:
    call = first_call(layer)
    if call is None:
        raise ModelError(f"The calls of layer {layer.name!r} are unknown: it is in no model.")
    return call


def with_parts(layer: Layer) -> list[Layer]:
    """Returns the layer and all layers inside it, at any depth, the outer ones first."""
    return list(layer._flatten_layers())


def attention_options(layer: Layer, *names: str) -> dict[str, Any]:
    """Returns constructor arguments of a ``MultiHeadAttention`` by name."""
    return {name: getattr(layer, f"_{name}") for name in names}


def configuration(layer: Layer) -> dict[str, Any]:
    """Returns constructor arguments; functions such as the activation as they are, not by name."""
    import keras

    own = "activation" in vars(layer) and not hasattr(keras.activations, _name(layer.activation))
    with replaced([(layer, "activation", keras.activations.linear)] if own else []):
        config: dict[str, Any] = layer.get_config()
    functions = {name: getattr(layer, name, None) for name in config}
    return config | {name: each for name, each in functions.items() if callable(each)}


def _name(function: Any) -> str:
    return getattr(function, "__name__", "")


def rebuild(original: Layer, input_shape: Any, weights: list[Any], **changes: Any) -> Layer:
    """Builds a layer from the original's configuration, with changes, and sets its weights.

    The input shape includes the batch axis; weights are in the order of ``layer.weights``.
    """
    layer = type(original).from_config({**configuration(original), **changes})
    layer.build(input_shape)
    layer.set_weights(weights)
    return layer
