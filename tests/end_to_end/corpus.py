"""Small architectures as people write them, to carry whole runs out on.

Each has random weights, random biases and random inputs: what is looked at is whether it can be
compressed and exported, not what it knows. Inputs with ``tokens`` or ``ids`` in their name hold
indices below ``WORDS``, whatever their type; ``pixels`` hold 0 to 255; a ``mask`` leaves out the
end of some samples; others are normal.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import exporter
from exporter.graph.network import Network
from exporter.graph.outputs import as_logits, output_layers

WORDS = 24
SAMPLES = 128
SPREAD = 2.0
QUALITY = "quality of"
"""Begins the reason why integers lose too much."""
DEPARTS = "departs at"
"""Begins the reason why a layer of a quantized artifact is taken for another one."""


@dataclass(frozen=True)
class Architecture:
    """A model, and where it meets a limit.

    Attributes:
        build: Makes it.
        line: What it is.
        limits: For each artifact that cannot be accepted, a part of the reason that is reported.
        large: Whether it takes minutes: only ``scripts/benchmark corpus`` runs it then.
    """

    build: Callable[[], Any]
    line: str
    limits: Mapping[str, str] = field(default_factory=dict)
    large: bool = False


CORPUS: dict[str, Architecture] = {}


def architecture(
    line: str, limits: Mapping[str, str] | None = None, *, large: bool = False
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        CORPUS[build.__name__] = Architecture(build, line, limits or {}, large)
        return build

    return add


def build(name: str) -> Any:
    """Makes a model of the corpus; the same weights every time."""
    seed = zlib.crc32(name.encode())
    keras.utils.set_random_seed(seed)
    model = CORPUS[name].build()
    generator = np.random.default_rng(seed)
    for variable in model.weights:  # The addition of a zero, if it were lost, would go unnoticed.
        if variable.name in {"bias", "beta", "moving_mean"}:
            variable.assign(generator.normal(0, 0.1, variable.shape))
        elif variable.name in {"gamma", "moving_variance"}:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    if CORPUS[name].large:
        _settle(model)
    _decide(model)
    return model


def _settle(model: Any) -> None:
    """Gives batch normalizations the statistics of the data: a deep model is constant without."""
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    (images,) = arrays(model).values()
    model(images, training=True)
    for norm, former in zip(norms, momentum, strict=True):
        norm.momentum = former


def _decide(model: Any) -> None:
    """Spreads the logits of probabilities as a trained model does: noise alone is undecided.

    Sigmoids in integers have steps of 1/256, and a random one hardly leaves one half.
    """
    network = Network(model)
    families = network.families({})
    names = [name for name, family in families.items() if family != "gaussian"]
    if not names:
        return
    outputs = network.runner()(arrays(model))
    for info, layer in zip(network.outputs, output_layers(network.model), strict=True):
        if info.name in names and isinstance(layer, (layers.Dense, layers.Conv2D)):
            logits = as_logits(outputs[info.name], families[info.name]).numpy()
            logits = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
            scale, centre = SPREAD / logits.std(axis=0).mean(), logits.mean(axis=0)
            layer.kernel.assign(layer.kernel * scale)
            if layer.use_bias:
                # Logits of classes are known up to what they share.
                shared = centre.mean() if centre.size > 1 else 0.0
                layer.bias.assign(scale * (layer.bias.numpy() - centre + shared))


def arrays(model: Any) -> dict[str, Any]:
    """Draws random inputs of a model, by name."""
    generator = np.random.default_rng(0)
    drawn = {}
    signature = Network(model).signature
    for info in signature.inputs:
        shape = (SAMPLES, *signature.sample_shape(info)[1:])
        # Samples differ in mean and contrast, which an average over positions keeps.
        each = (SAMPLES, *(1,) * (len(shape) - 2), shape[-1])[: len(shape)]
        contrast = generator.uniform(0.3, 1, each)
        if "tokens" in info.name or "ids" in info.name:
            values = generator.integers(0, WORDS, shape)
        elif "mask" in info.name:
            values = np.arange(shape[1]) < generator.integers(1, shape[1], (SAMPLES, 1))
        elif info.name.startswith("pixels"):
            values = generator.integers(0, 256, shape) * contrast
        else:
            values = generator.normal(size=shape) * contrast + generator.normal(size=each)
        drawn[info.name] = values.astype(info.dtype)
    return drawn


def run(name: str, output: Path) -> exporter.Report:
    """Compresses, exports and verifies a model of the corpus."""
    model = build(name)
    recipe = exporter.Recipe(
        rank=0.5,
        formats=("saved_model", "tflite", "onnx"),
        quantize=("none", "int8"),
        granularity="channel",  # To measure both takes twice as long.
        report=False,
        output=str(output),
    )
    return exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays(model)))


def verdicts(report: exporter.Report) -> dict[str, str]:
    """Says what became of each artifact: nothing if it was accepted, otherwise why it was not."""
    return {
        item.format if item.variant == "float32" else f"{item.format} {item.variant}": _reason(
            report, item
        )
        for item in report.artifacts
    }


def _reason(report: exporter.Report, item: Any) -> str:
    if item.accepted:
        return ""
    if item.conversion is None or item.conversion.error:
        return str(item.error or item.conversion.error)
    parts = []
    if item.conversion.parity and not item.conversion.parity.passed:
        strain = max((c.strain for c in item.conversion.parity.comparisons), default=0)
        kinds = sorted({fault.kind for fault in item.conversion.parity.faults})
        parts.append(f"parity {strain:.1f} times the tolerance {kinds}")
    for output in item.conversion.quality.outputs if item.conversion.quality else ():
        if not output.passed:
            agreement = output.top1_agreement
            parts.append(
                f"{QUALITY} {output.output}: SNR {output.snr_db:.1f} dB"
                + ("" if agreement is None else f", agreement {agreement:.0%}")
                + (f", {output.lost_channels:.0%} of channels lost" if output.lost_channels else "")
            )
    if item.conversion.quality and not item.conversion.quality.passed:
        faults = [fault for fault in item.conversion.quality.faults if not fault.in_reference]
        parts += [f"output {f.output} is {f.kind} on {f.probe} in {f.backend}" for f in faults]
    if item.conversion.structure and not item.conversion.structure.passed:
        proof = item.conversion.structure
        missing = [layer.layer for layer in proof.layers if not layer.found]
        dense = [layer.layer for layer in proof.layers if not layer.dense_gone]
        parts.append(
            f"structure: missing {missing}, dense {dense}, weights {proof.stored_bytes:,} bytes, "
            f"{proof.predicted_bytes:,} planned, file {proof.file_bytes:,}"
        )
    departure = item.conversion.departure
    if departure and not parts:
        found = f"SNR {departure.snr_db:.1f} dB, {departure.least_db:.1f} at least"
        parts.append(f"{DEPARTS} {departure.layer}: {found}")
    if not report.compression.passed:
        parts.append("the compression collapsed")
    return "; ".join(parts) or "not accepted, for no reason that was found"


def _image(size: int = 12, channels: int = 3, name: str = "image") -> Any:
    return keras.Input((size, size, channels), name=name)


def _conv_norm(x: Any, filters: int, size: int = 3, strides: int = 1, act: Any = "relu") -> Any:
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(act)(x) if act else x


def _classes(x: Any, count: int = 5) -> Any:
    return layers.Dense(count, activation="softmax")(layers.GlobalAveragePooling2D()(x))


# Perceptrons, autoencoders, tables.


@architecture("Sequential MLP with a softmax")
def mlp_softmax():
    return keras.Sequential(
        [
            keras.Input((20,), name="features"),
            layers.Dense(48, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(40, activation="relu"),
            layers.Dense(5, activation="softmax"),
        ]
    )


@architecture("Sequential MLP with one sigmoid")
def mlp_sigmoid():
    return keras.Sequential(
        [
            keras.Input((20,), name="features"),
            layers.Dense(48, activation="tanh"),
            layers.Dense(32, activation="tanh"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


@architecture("Sequential MLP with logits and batch normalizations between Dense and ReLU")
def mlp_logits():
    model = keras.Sequential([keras.Input((20,), name="features")])
    for units in (48, 40):
        model.add(layers.Dense(units, use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Dense(5))
    return model


@architecture("Sequential regression with a linear output of two values")
def mlp_regression():
    return keras.Sequential(
        [
            keras.Input((13,), name="features"),
            layers.Dense(48, activation="relu"),
            layers.Dense(48, activation="swish"),
            layers.Dense(2),
        ]
    )


@architecture("PReLU, LeakyReLU and ELU as layers", {"tflite int8": QUALITY, "onnx int8": QUALITY})
def leaky_activations():
    x = inputs = keras.Input((20,), name="features")
    for act in (layers.PReLU(), layers.LeakyReLU(), layers.ELU()):
        x = act(layers.Dense(40)(x))
    return keras.Model(inputs, layers.Dense(4)(x))


@architecture("Dense autoencoder of vectors")
def autoencoder():
    x = inputs = keras.Input((32,), name="features")
    for units in (40, 24, 40):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(32, activation="sigmoid")(x))


@architecture("Convolutional autoencoder of images, with UpSampling2D")
def autoencoder_conv():
    inputs = _image(8, 1)
    x = layers.Conv2D(16, 3, activation="relu", padding="same")(inputs)
    x = layers.MaxPooling2D(padding="same")(x)
    x = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
    x = layers.UpSampling2D()(x)
    return keras.Model(inputs, layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x))


@architecture("Decoder of a variational autoencoder, from a latent vector to an image")
def vae_decoder():
    inputs = keras.Input((8,), name="latent")
    x = layers.Reshape((4, 4, 12))(layers.Dense(4 * 4 * 12, activation="relu")(inputs))
    x = layers.Conv2DTranspose(16, 3, 2, padding="same", activation="relu")(x)
    return keras.Model(
        inputs, layers.Conv2DTranspose(1, 3, 2, padding="same", activation="sigmoid")(x)
    )


@architecture("Encoder of a variational autoencoder, with mean and logarithm of the variance")
def vae_encoder():
    inputs = _image(8, 1)
    x = layers.Conv2D(16, 3, 2, activation="relu", padding="same")(inputs)
    x = layers.Dense(24, activation="relu")(layers.Flatten()(x))
    return keras.Model(
        inputs, [layers.Dense(6, name="z_mean")(x), layers.Dense(6, name="z_log_var")(x)]
    )


@architecture("Table with embedded categories, concatenated with numbers")
def tabular_embeddings():
    numbers = keras.Input((6,), name="numbers")
    ids = [keras.Input((1,), dtype="int32", name=f"ids_{i}") for i in range(2)]
    embedded = [layers.Flatten()(layers.Embedding(WORDS, 8)(each)) for each in ids]
    x = layers.Concatenate()([numbers, *embedded])
    x = layers.Dense(48, activation="relu")(x)
    x = layers.Dense(32, activation="relu")(x)
    return keras.Model([numbers, *ids], layers.Dense(1, activation="sigmoid")(x))


@architecture("Wide and deep: a linear part beside a perceptron")
def wide_and_deep():
    wide, deep = keras.Input((16,), name="wide"), keras.Input((12,), name="deep")
    x = layers.Dense(40, activation="relu")(deep)
    x = layers.Concatenate()([wide, layers.Dense(32, activation="relu")(x)])
    return keras.Model([wide, deep], layers.Dense(1, activation="sigmoid")(x))


@architecture("Recommender: dot product of two embeddings, and biases")
def recommender_dot():
    user = keras.Input((1,), dtype="int32", name="ids_user")
    item = keras.Input((1,), dtype="int32", name="ids_item")
    vectors = [layers.Flatten()(layers.Embedding(WORDS, 16)(each)) for each in (user, item)]
    bias = layers.Flatten()(layers.Embedding(WORDS, 1)(item))
    return keras.Model([user, item], layers.Add()([layers.Dot(1)(vectors), bias]))


@architecture(
    "Neural collaborative filtering: product and perceptron of embeddings", {"onnx int8": QUALITY}
)
def recommender_ncf():
    user = keras.Input((), dtype="int32", name="ids_user")
    item = keras.Input((), dtype="int32", name="ids_item")
    gmf = layers.Multiply()([layers.Embedding(WORDS, 12)(each) for each in (user, item)])
    mlp = layers.Concatenate()([layers.Embedding(WORDS, 12)(each) for each in (user, item)])
    mlp = layers.Dense(24, activation="relu")(layers.Dense(32, activation="relu")(mlp))
    x = layers.Concatenate()([gmf, mlp])
    return keras.Model([user, item], layers.Dense(1, activation="sigmoid")(x))


@architecture("Siamese network: one tower for two inputs, and their distance")
def siamese():
    tower = keras.Sequential(
        [keras.Input((20,)), layers.Dense(40, activation="relu"), layers.Dense(24)]
    )
    left, right = keras.Input((20,), name="left"), keras.Input((20,), name="right")
    gap = ops.abs(tower(left) - tower(right))
    return keras.Model([left, right], layers.Dense(1, activation="sigmoid")(gap))


@architecture("Triplet tower with embeddings of length one")
def unit_embedding():
    inputs = _image()
    x = layers.GlobalAveragePooling2D()(_conv_norm(_conv_norm(inputs, 16), 24, strides=2))
    return keras.Model(inputs, layers.UnitNormalization()(layers.Dense(16)(x)))


@architecture("Mixture of experts with a softmax gate over three Dense layers")
def mixture_of_experts():
    inputs = keras.Input((20,), name="features")
    gate = layers.Dense(3, activation="softmax")(inputs)
    experts = [layers.Dense(24, activation="relu")(inputs) for _ in range(3)]
    mixed = ops.einsum("be,bec->bc", gate, ops.stack(experts, axis=1))
    return keras.Model(inputs, layers.Dense(4)(mixed))


@architecture("Highway network with gates")
def highway():
    x = inputs = keras.Input((24,), name="features")
    for _ in range(2):
        gate = layers.Dense(24, activation="sigmoid")(x)
        x = gate * layers.Dense(24, activation="relu")(x) + (1.0 - gate) * x
    return keras.Model(inputs, layers.Dense(3)(x))


# Convolutional networks.


@architecture("CNN with batch normalizations, pooling, Flatten and Dense")
def cnn():
    inputs = _image()
    x = layers.MaxPooling2D()(_conv_norm(inputs, 16))
    x = layers.Flatten()(layers.MaxPooling2D()(_conv_norm(x, 24)))
    x = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


@architecture("LeNet with average pooling and tanh")
def lenet():
    return keras.Sequential(
        [
            keras.Input((16, 16, 1), name="image"),
            layers.Conv2D(6, 5, activation="tanh", padding="same"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 5, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(48, activation="tanh"),
            layers.Dense(10, activation="softmax"),
        ]
    )


@architecture("Depthwise and separable convolutions", {"onnx int8": QUALITY})
def separable():
    inputs = _image()
    x = layers.SeparableConv2D(16, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.SeparableConv2D(24, 3, strides=2, padding="same")(layers.ReLU()(x))
    return keras.Model(inputs, _classes(x))


@architecture("Residual blocks with a projection")
def resnet():
    x = inputs = _image()
    for filters, strides in ((16, 1), (24, 2)):
        short = _conv_norm(x, filters, 1, strides, act=None)
        x = _conv_norm(_conv_norm(x, filters, strides=strides), filters, act=None)
        x = layers.ReLU()(layers.Add()([x, short]))
    return keras.Model(inputs, _classes(x))


@architecture("Pre-activated residual block")
def resnet_v2():
    inputs = _image()
    x = layers.Conv2D(16, 3, padding="same")(inputs)
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(y)))
        x = layers.Add()([x, layers.Conv2D(16, 3, padding="same")(y)])
    return keras.Model(inputs, _classes(layers.ReLU()(layers.BatchNormalization()(x))))


@architecture("Inception block of four branches")
def inception():
    inputs = _image()
    x = _conv_norm(inputs, 16)
    branches = [
        _conv_norm(x, 8, 1),
        _conv_norm(_conv_norm(x, 8, 1), 12, 3),
        _conv_norm(_conv_norm(x, 4, 1), 8, 5),
        _conv_norm(layers.MaxPooling2D(3, 1, padding="same")(x), 8, 1),
    ]
    return keras.Model(inputs, _classes(layers.Concatenate()(branches)))


@architecture("Densely connected block with a transition")
def densenet():
    inputs = _image()
    x = _conv_norm(inputs, 12)
    for _ in range(3):
        x = layers.Concatenate()([x, _conv_norm(x, 8)])
    return keras.Model(inputs, _classes(layers.AveragePooling2D(2)(_conv_norm(x, 16, 1))))


@architecture("VGG-like stack, Sequential, 3 x 3 convolutions in pairs")
def vgg():
    model = keras.Sequential([_image(8)])
    for filters in (12, 24):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(32, activation="relu"))
    model.add(layers.Dense(5, activation="softmax"))
    return model


@architecture("Fire modules of SqueezeNet")
def squeezenet():
    inputs = _image()
    x = layers.Conv2D(16, 3, activation="relu", padding="same")(inputs)
    for squeeze, expand in ((8, 12), (8, 16)):
        x = layers.Conv2D(squeeze, 1, activation="relu")(x)
        wide = layers.Conv2D(expand, 3, activation="relu", padding="same")(x)
        x = layers.Concatenate()([layers.Conv2D(expand, 1, activation="relu")(x), wide])
    x = layers.Conv2D(5, 1)(x)
    return keras.Model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))


@architecture("Inverted residuals of MobileNetV2 with ReLU6", {"tflite int8": QUALITY})
def mobilenet_v2():
    inputs = _image()
    x = _conv_norm(inputs, 12, strides=2, act="relu6")
    for _ in range(2):
        y = _conv_norm(x, 48, 1, act="relu6")
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y))
        x = layers.Add()([x, _conv_norm(layers.ReLU(6.0)(y), 12, 1, act=None)])
    return keras.Model(inputs, _classes(x))


def _squeeze_and_excite(x: Any, gate: str = "sigmoid") -> Any:
    channels = x.shape[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(channels // 4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=gate)(y)])


@architecture("Block of MobileNetV3: hard swish, squeeze and excite with hard sigmoid")
def mobilenet_v3():
    inputs = _image()
    x = _conv_norm(inputs, 16, strides=2, act="hard_swish")
    y = _conv_norm(x, 48, 1, act="hard_swish")
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(5, padding="same")(y))
    y = _squeeze_and_excite(layers.Activation("hard_swish")(y), "hard_sigmoid")
    return keras.Model(inputs, _classes(layers.Add()([x, _conv_norm(y, 16, 1, act=None)])))


@architecture("Squeeze and excite with Dense layers and Reshape")
def squeeze_excite():
    inputs = _image()
    x = _conv_norm(inputs, 24)
    y = layers.Dense(6, activation="relu")(layers.GlobalAveragePooling2D()(x))
    y = layers.Reshape((1, 1, 24))(layers.Dense(24, activation="sigmoid")(y))
    return keras.Model(inputs, _classes(layers.Multiply()([x, y])))


@architecture("Spatial and channel attention (CBAM) with keras.ops")
def cbam():
    inputs = _image()
    x = _squeeze_and_excite(_conv_norm(inputs, 16))
    both = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
    place = layers.Conv2D(1, 5, padding="same", activation="sigmoid")(layers.Concatenate()(both))
    return keras.Model(inputs, _classes(x * place))


@architecture("ConvNeXt block: 7 x 7 depthwise, LayerNormalization, GELU")
def convnext():
    inputs = _image()
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(16, 2, 2)(inputs))
    y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(7, padding="same")(x))
    y = layers.Dense(16)(layers.Dense(64, activation="gelu")(y))
    return keras.Model(inputs, _classes(layers.Add()([x, y])))


@architecture("Ghost module: a few convolutions, and depthwise ones on top")
def ghostnet():
    x = inputs = _image()
    for filters in (12, 16):
        few = _conv_norm(x, filters, 1)
        cheap = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(few)
        x = layers.Concatenate()([few, layers.ReLU()(layers.BatchNormalization()(cheap))])
    return keras.Model(inputs, _classes(x))


@architecture("ShuffleNet unit: grouped convolutions and a shuffle of channels")
def shufflenet():
    inputs = _image()
    x = _conv_norm(inputs, 16)
    y = layers.ReLU()(layers.Conv2D(16, 1, groups=2)(x))
    y = layers.Permute((1, 2, 4, 3))(layers.Reshape((12, 12, 2, 8))(y))
    y = layers.DepthwiseConv2D(3, padding="same")(layers.Reshape((12, 12, 16))(y))
    y = layers.Conv2D(16, 1, groups=2)(y)
    return keras.Model(inputs, _classes(layers.ReLU()(layers.Add()([x, y]))))


@architecture("U-Net with Conv2DTranspose and a softmax for each pixel")
def unet():
    inputs = _image(8)
    first = _conv_norm(inputs, 12)
    low = _conv_norm(layers.MaxPooling2D()(first), 24)
    up = layers.Conv2DTranspose(12, 2, 2, padding="same", activation="relu")(low)
    x = _conv_norm(layers.Concatenate()([first, up]), 12)
    return keras.Model(inputs, layers.Conv2D(4, 1, activation="softmax")(x))


@architecture("Segmentation with dilated convolutions and bilinear upsampling")
def segmentation():
    inputs = _image()
    x = _conv_norm(inputs, 16, strides=2)
    rates = [
        layers.Conv2D(8, 3, padding="same", dilation_rate=rate, activation="relu")(x)
        for rate in (1, 2)
    ]
    x = layers.Conv2D(3, 1)(layers.Concatenate()(rates))
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return keras.Model(inputs, layers.Softmax()(x))


@architecture("Super-resolution with a rearrangement of channels into pixels")
def super_resolution():
    inputs = _image(8, 1)
    x = layers.Conv2D(24, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = ops.reshape(x, (-1, 8, 8, 2, 2, 1))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 16, 16, 1))
    return keras.Model(inputs, x)


@architecture("Detector: classes and boxes for each cell, two outputs")
def detector():
    inputs = _image(16)
    x = _conv_norm(_conv_norm(inputs, 16, strides=2), 24, strides=2)
    kinds = layers.Conv2D(2 * 3, 3, padding="same")(x)
    kinds = layers.Softmax(name="classes")(layers.Reshape((-1, 3))(kinds))
    boxes = layers.Conv2D(2 * 4, 3, padding="same")(x)
    return keras.Model(inputs, [kinds, layers.Reshape((-1, 4), name="boxes")(boxes)])


@architecture("Key points: coordinates of seven points from a sigmoid")
def keypoints():
    inputs = _image()
    x = layers.MaxPooling2D()(_conv_norm(inputs, 16))
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    x = layers.Dense(14, activation="sigmoid")(x)
    return keras.Model(inputs, layers.Reshape((7, 2))(x))


@architecture("GroupNormalization in place of batch normalization")
def group_normalization():
    x = inputs = _image()
    for filters in (16, 24):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.Activation("silu")(layers.GroupNormalization(4)(x))
    return keras.Model(inputs, _classes(x))


@architecture("Conv3D of short clips", {"tflite": "tf.MaxPool3D", "tflite int8": "tf.MaxPool3D"})
def conv3d():
    inputs = keras.Input((4, 8, 8, 2), name="clip")
    x = layers.Conv3D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv3D(16, 3, padding="same", activation="relu")(layers.MaxPooling3D()(x))
    x = layers.GlobalAveragePooling3D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


@architecture("ConvLSTM2D over frames")
def conv_lstm():
    inputs = keras.Input((3, 8, 8, 2), name="frames")
    x = layers.ConvLSTM2D(8, 3, padding="same")(inputs)
    return keras.Model(inputs, _classes(x, 3))


@architecture("keras.applications.MobileNetV2, alpha 0.35, 32 x 32", large=True)
def applications_mobilenet_v2():
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)


@architecture("keras.applications.MobileNetV3Small, 32 x 32", large=True)
def applications_mobilenet_v3():
    return keras.applications.MobileNetV3Small((32, 32, 3), weights=None, classes=5)


# Sequences.


@architecture("Dilated causal Conv1D with residual connections (TCN)")
def tcn():
    inputs = keras.Input((16, 4), name="signal")
    x = layers.Conv1D(16, 1)(inputs)
    for rate in (1, 2, 4):
        y = layers.Conv1D(16, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@architecture("Gated blocks of WaveNet with skip connections")
def wavenet():
    inputs = keras.Input((16, 4), name="signal")
    x, skips = layers.Conv1D(12, 2, padding="causal")(inputs), []
    for rate in (1, 2):
        options = {"padding": "causal", "dilation_rate": rate}
        signal = layers.Conv1D(12, 2, activation="tanh", **options)(x)
        gate = layers.Conv1D(12, 2, activation="sigmoid", **options)(x)
        y = layers.Conv1D(12, 1)(layers.Multiply()([signal, gate]))
        skips.append(y)
        x = layers.Add()([x, y])
    x = layers.ReLU()(layers.Add()(skips))
    return keras.Model(inputs, layers.Conv1D(6, 1, activation="softmax")(x))


@architecture(
    "Keyword spotting: depthwise separable CNN on a spectrogram",
    {"tflite int8": QUALITY, "onnx int8": QUALITY},
)
def keyword_spotting():
    x = inputs = keras.Input((20, 10, 1), name="spectrogram")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, (4, 4), 2, "same")(x)))
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, 1, "same")(x)))
        x = _conv_norm(x, 16, 1)
    return keras.Model(inputs, _classes(x, 6))


@architecture("Signals: Conv1D, pooling and Dense, Sequential")
def signal_cnn():
    return keras.Sequential(
        [
            keras.Input((24, 3), name="signal"),
            layers.Conv1D(16, 5, activation="relu"),
            layers.MaxPooling1D(),
            layers.Conv1D(24, 3, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def _text() -> tuple[Any, Any]:
    inputs = keras.Input((10,), dtype="int32", name="tokens")
    return inputs, layers.Embedding(WORDS, 16)(inputs)


@architecture("Text: Embedding and the mean over words")
def text_mean():
    inputs, x = _text()
    x = layers.Dense(32, activation="relu")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@architecture("Text: Embedding with a mask of padding and the mean over words")
def text_masked_mean():
    inputs = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(WORDS, 16, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@architecture("Text: Embedding, Conv1D and the maximum")
def text_conv():
    inputs, x = _text()
    parts = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(12, size, activation="relu")(x))
        for size in (2, 3, 4)
    ]
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Concatenate()(parts)))


@architecture("Text: Embedding and LSTM")
def text_lstm():
    inputs, x = _text()
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.LSTM(16)(x)))


@architecture("Text: Embedding and two layers of GRU", {"onnx int8": QUALITY})
def text_gru():
    inputs, x = _text()
    x = layers.GRU(12)(layers.GRU(16, return_sequences=True)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@architecture("Text: Embedding and a bidirectional LSTM", {"onnx int8": QUALITY})
def text_bidirectional():
    inputs, x = _text()
    x = layers.Bidirectional(layers.LSTM(12))(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@architecture("Text: masked Embedding and LSTM, which skips padding")
def text_masked_lstm():
    inputs = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.LSTM(16)(layers.Embedding(WORDS, 16, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@architecture("Text: tokens that are given as floats")
def float_tokens():
    inputs = keras.Input((10,), name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(WORDS, 16)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@architecture("Tags for each word: bidirectional GRU, TimeDistributed")
def tagger():
    inputs, x = _text()
    x = layers.Bidirectional(layers.GRU(12, return_sequences=True))(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(5, activation="softmax"))(x))


@architecture(
    "Forecast: LSTM, RepeatVector, LSTM, TimeDistributed",
    {"tflite int8": QUALITY, "onnx int8": QUALITY},
)
def forecaster():
    inputs = keras.Input((8, 3), name="series")
    x = layers.RepeatVector(4)(layers.LSTM(16)(inputs))
    x = layers.LSTM(16, return_sequences=True)(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(1))(x))


@architecture("Encoder and decoder, the state of one is the other's initial_state")
def encoder_decoder():
    source = keras.Input((8,), dtype="int32", name="tokens_source")
    target = keras.Input((6,), dtype="int32", name="tokens_target")
    _, *state = layers.LSTM(16, return_state=True)(layers.Embedding(WORDS, 12)(source))
    decoder = layers.LSTM(16, return_sequences=True)
    x = decoder(layers.Embedding(WORDS, 12)(target), initial_state=state)
    return keras.Model([source, target], layers.Dense(WORDS, activation="softmax")(x))


@architecture("SimpleRNN over a series")
def simple_rnn():
    inputs = keras.Input((8, 3), name="series")
    return keras.Model(inputs, layers.Dense(2)(layers.SimpleRNN(16)(inputs)))


@architecture("CNN for each frame by TimeDistributed, then GRU")
def frames_cnn_gru():
    inputs = keras.Input((3, 8, 8, 2), name="frames")
    cnn = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    x = layers.GRU(12)(layers.TimeDistributed(cnn)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


# Attention.


@architecture("MultiHeadAttention, LayerNormalization and a perceptron as layers")
def attention_block():
    inputs = keras.Input((8, 16), name="sequence")
    x = layers.Add()([inputs, layers.MultiHeadAttention(2, 8)(inputs, inputs)])
    x = layers.LayerNormalization()(x)
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@architecture("Causal attention over tokens: a small language model")
def language_model():
    inputs, x = _text()
    y = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(WORDS)(x))


@architecture("Cross attention between two sequences")
def cross_attention():
    query, memory = keras.Input((4, 16), name="query"), keras.Input((8, 16), name="memory")
    x = layers.MultiHeadAttention(2, 8)(query, memory)
    x = layers.LayerNormalization()(layers.Add()([query, x]))
    return keras.Model([query, memory], layers.Dense(3)(layers.Flatten()(x)))


@architecture("GroupedQueryAttention", {"onnx int8": QUALITY})
def grouped_query_attention():
    inputs = keras.Input((8, 16), name="sequence")
    x = layers.GroupQueryAttention(8, 4, 2)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@architecture("Attention pooling: a softmax over steps weighs them")
def attention_pooling():
    inputs = keras.Input((8, 12), name="sequence")
    x = layers.Dense(24, activation="tanh")(inputs)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(x))
    x = ops.sum(weights * x, axis=1)
    return keras.Model(inputs, layers.Dense(4)(x))


@architecture("Dot-product Attention layer of Keras between query and value")
def dot_attention():
    query, value = keras.Input((4, 12), name="query"), keras.Input((8, 12), name="value")
    parts = [layers.Dense(16)(query), layers.Dense(16)(value)]
    x = layers.GlobalAveragePooling1D()(layers.Attention()(parts))
    return keras.Model([query, value], layers.Dense(3, activation="softmax")(x))


class TransformerBlock(layers.Layer):
    def __init__(self, size=16, heads=2, hidden=32):
        super().__init__()
        self.attention = layers.MultiHeadAttention(heads, size // heads)
        self.mlp = keras.Sequential([layers.Dense(hidden, activation="relu"), layers.Dense(size)])
        self.first, self.second = layers.LayerNormalization(), layers.LayerNormalization()
        self.dropout = layers.Dropout(0.1)

    def call(self, inputs, training=None):
        mixed = self.dropout(self.attention(inputs, inputs), training=training)
        x = self.first(inputs + mixed)
        return self.second(x + self.mlp(x))


@architecture(
    "Text classifier with a transformer block as a custom layer",
    {"tflite int8": QUALITY, "onnx int8": QUALITY},
)
def transformer_custom():
    inputs, x = _text()
    x = layers.GlobalAveragePooling1D()(TransformerBlock()(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


class Places(layers.Layer):
    def build(self, shape):
        self.places = self.add_weight(shape=shape[1:], name="places")

    def call(self, inputs):
        return inputs + self.places


@architecture(
    "Vision transformer: patches by Conv2D, learned places, two blocks", {"tflite int8": QUALITY}
)
def vit():
    inputs = _image(8)
    x = Places()(layers.Reshape((4, 16))(layers.Conv2D(16, 4, 4)(inputs)))
    for _ in range(2):
        x = TransformerBlock()(x)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(5)(x))


@architecture("MLP-Mixer: Dense over patches and over channels")
def mlp_mixer():
    inputs = _image(8)
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 2, 2)(inputs))
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Dense(16)(layers.Dense(24, activation="gelu")(y))
    x = layers.Add()([x, layers.Permute((2, 1))(y)])
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.GlobalAveragePooling1D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(5)(x))


@architecture("EinsumDense for several heads")
def einsum_dense():
    inputs = keras.Input((6, 16), name="sequence")
    x = layers.EinsumDense("abc,cde->abde", (6, 4, 8), bias_axes="de", activation="relu")(inputs)
    x = layers.EinsumDense("abde,dec->abc", (6, 16), bias_axes="c")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


# Ways to write a model.


class Perceptron(keras.Model):
    def __init__(self):
        super().__init__(name="perceptron")
        self.hidden = [layers.Dense(units, activation="relu") for units in (48, 32)]
        self.scores = layers.Dense(5)

    def call(self, inputs):
        for layer in self.hidden:
            inputs = layer(inputs)
        return self.scores(inputs)


@architecture("Subclassed perceptron", {"tflite int8": QUALITY, "onnx int8": QUALITY})
def subclassed_mlp():
    model = Perceptron()
    model(np.zeros((2, 20), "float32"))
    return model


class ConvNet(keras.Model):
    def __init__(self):
        super().__init__(name="conv_net")
        self.convs = [layers.Conv2D(filters, 3, padding="same") for filters in (16, 24)]
        self.norms = [layers.BatchNormalization() for _ in self.convs]
        self.mean, self.classes = layers.GlobalAveragePooling2D(), layers.Dense(5)

    def call(self, inputs, training=False):
        x = inputs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.relu(norm(conv(x), training=training))
        return self.classes(self.mean(x))


@architecture("Subclassed CNN with batch normalizations")
def subclassed_cnn():
    model = ConvNet()
    model(np.zeros((2, 8, 8, 3), "float32"))
    return model


@architecture("Sequential models nested in a functional one")
def nested():
    inputs = _image()
    body = keras.Sequential(
        [
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(24, 3, activation="relu"),
        ]
    )
    head = keras.Sequential([layers.Flatten(), layers.Dense(32, activation="relu")])
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(head(body(inputs))))


@architecture("Transfer learning: frozen body called with training=False, a new head")
def transfer():
    body_input = _image()
    body = keras.Model(body_input, _conv_norm(_conv_norm(body_input, 16), 24, strides=2))
    body.trainable = False
    inputs = keras.Input((12, 12, 3), name="photo")
    x = layers.GlobalAveragePooling2D()(body(inputs, training=False))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


@architecture("mixed_float16, with a float32 softmax")
def mixed_float16():
    inputs = _image()
    half = {"dtype": "mixed_float16"}
    x = layers.Conv2D(16, 3, activation="relu", **half)(inputs)
    x = layers.GlobalAveragePooling2D(**half)(layers.Conv2D(24, 3, activation="relu", **half)(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", dtype="float32")(x))


@architecture("mixed_bfloat16, with a float32 output")
def mixed_bfloat16():
    inputs = keras.Input((20,), name="features")
    x = layers.Dense(48, activation="relu", dtype="mixed_bfloat16")(inputs)
    x = layers.Dense(40, activation="relu", dtype="mixed_bfloat16")(x)
    return keras.Model(inputs, layers.Dense(5, dtype="float32")(x))


@architecture("Rescaling of pixels, Resizing and a CNN")
def rescaling_resizing():
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.Resizing(12, 12)(layers.Rescaling(1 / 127.5, offset=-1)(inputs))
    return keras.Model(inputs, _classes(_conv_norm(_conv_norm(x, 16), 24)))


@architecture("Pixels as integers of 8 bits, rescaled in the model", {"onnx int8": QUALITY})
def uint8_image():
    inputs = keras.Input((12, 12, 3), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255)(inputs)
    return keras.Model(inputs, _classes(_conv_norm(_conv_norm(x, 16), 24)))


@architecture("Augmentation layers before a CNN")
def augmentation():
    inputs = keras.Input((12, 12, 3), name="pixels")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Rescaling(1 / 255)(x)
    return keras.Model(inputs, _classes(_conv_norm(_conv_norm(x, 16), 24)))


@architecture("Normalization adapted to a table")
def normalization():
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(2, 3, (64, 12)))
    model = keras.Sequential([keras.Input((12,), name="features"), norm])
    model.add(layers.Dense(40, activation="relu"))
    model.add(layers.Dense(32, activation="relu"))
    model.add(layers.Dense(2))
    return model


@architecture(
    "CategoryEncoding of ids, beside numbers", {"tflite int8": QUALITY, "onnx int8": QUALITY}
)
def category_encoding():
    ids = keras.Input((1,), dtype="int32", name="ids")
    numbers = keras.Input((8,), name="numbers")
    x = layers.Concatenate()([layers.CategoryEncoding(WORDS, "one_hot")(ids), numbers])
    x = layers.Dense(32, activation="relu")(x)
    return keras.Model([ids, numbers], layers.Dense(2)(x))


@architecture("keras.ops and operators between layers")
def ops_in_graph():
    inputs = keras.Input((20,), name="features")
    x = ops.relu(layers.Dense(40)(inputs) * 2.0 - 0.5)
    left, right = ops.split(layers.Dense(32)(x), 2, axis=-1)
    x = ops.concatenate([ops.tanh(left) * ops.sigmoid(right), ops.abs(left)], axis=-1)
    return keras.Model(inputs, layers.Dense(4)(ops.clip(x, -1.0, 1.0)))


@architecture("Lambda layer")
def lambda_layer():
    inputs = keras.Input((20,), name="features")
    x = layers.Lambda(lambda t: t * 0.5 + 1.0)(layers.Dense(40, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(4)(layers.Dense(32)(x)))


@architecture("A lambda as the activation of layers")
def lambda_activation():
    inputs = keras.Input((20,), name="features")
    x = layers.Dense(40, activation=lambda t: ops.maximum(t, 0.1 * t))(inputs)
    return keras.Model(inputs, layers.Dense(4)(x))


@architecture("Dictionaries of inputs and outputs")
def dictionaries():
    inputs = {"query": keras.Input((16,), name="query"), "item": keras.Input((12,), name="item")}
    x = layers.Dense(32, activation="relu")(layers.Concatenate()(list(inputs.values())))
    outputs = {"rating": layers.Dense(1)(x), "click": layers.Dense(2, activation="softmax")(x)}
    return keras.Model(inputs, outputs)


@architecture("An input that is an output too", {"tflite int8": QUALITY})
def passthrough():
    inputs = keras.Input((12,), name="features")
    x = layers.Dense(32, activation="relu")(inputs)
    return keras.Model(inputs, [inputs, layers.Dense(4, name="scores")(x)])


@architecture("The index of the best class as an output, beside the scores")
def argmax():
    inputs = keras.Input((12,), name="features")
    scores = layers.Dense(4, name="scores")(layers.Dense(32, activation="relu")(inputs))
    return keras.Model(inputs, [scores, ops.argmax(scores, axis=-1)])


@architecture("A hidden layer as a second output")
def features_and_classes():
    inputs = keras.Input((20,), name="features")
    hidden = layers.Dense(24, name="embedding")(layers.Dense(40, activation="relu")(inputs))
    classes = layers.Dense(4, activation="softmax", name="classes")(layers.ReLU()(hidden))
    return keras.Model(inputs, [classes, hidden])


@architecture("A batch that is fixed to 1")
def fixed_batch():
    inputs = keras.Input(batch_shape=(1, 12, 12, 3), name="image")
    return keras.Model(inputs, _classes(_conv_norm(_conv_norm(inputs, 16), 24, strides=2)))


@architecture("Images of any size, fully convolutional")
def any_size():
    inputs = keras.Input((None, None, 3), name="image")
    return keras.Model(inputs, _classes(_conv_norm(_conv_norm(inputs, 16), 24, strides=2)))


@architecture("Weight sharing: one Dense layer called three times")
def shared_layer():
    x = inputs = keras.Input((24,), name="features")
    shared = layers.Dense(24, activation="tanh")
    for _ in range(3):
        x = shared(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@architecture("SpectralNormalization around layers")
def spectral_normalization():
    inputs = _image(8)
    x = layers.SpectralNormalization(layers.Conv2D(16, 3, activation="relu"))(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.SpectralNormalization(layers.Dense(3))(x))


@architecture("Odd names of model, layers and inputs")
def odd_names():
    inputs = keras.Input((16,), name="my input: 1")
    x = layers.Dense(32, activation="relu", name="size-a.b")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="out-put_0")(x), name="model-v1.0")
