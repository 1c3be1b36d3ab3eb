"""Custom layers, wrappers and subclassed models: layers within layers, from end to end."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import exporter
from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates


class TransformerBlock(layers.Layer):
    def __init__(self, size=32, heads=2, hidden=48):
        super().__init__()
        self.attention = layers.MultiHeadAttention(heads, size // heads)
        self.mlp = keras.Sequential([layers.Dense(hidden, activation="relu"), layers.Dense(size)])
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.dropout = layers.Dropout(0.1)

    def call(self, inputs, training=None):
        mixed = self.dropout(self.attention(inputs, inputs), training=training)
        first = self.norms[0](inputs + mixed)
        return self.norms[1](first + self.mlp(first))


class TokensAndPositions(layers.Layer):
    def __init__(self, length=12, words=60, size=32):
        super().__init__()
        self.parts = {
            "word": layers.Embedding(words, size),
            "place": layers.Embedding(length, size),
        }

    def call(self, inputs):
        return self.parts["word"](inputs) + self.parts["place"](ops.arange(inputs.shape[-1]))


class PatchEncoder(layers.Layer):
    def __init__(self, patch=4, size=32):
        super().__init__()
        self.patch, self.projection = patch, layers.Dense(size)

    def build(self, shape):
        count = shape[1] * shape[2] // self.patch**2
        self.projection.build((None, count, self.patch**2 * shape[-1]))
        self.places = self.add_weight(shape=(count, self.projection.units), name="places")

    def call(self, images):
        _, height, width, channels = images.shape
        rows, columns, size = height // self.patch, width // self.patch, self.patch
        tiles = ops.reshape(images, (-1, rows, size, columns, size, channels))
        tiles = ops.transpose(tiles, (0, 1, 3, 2, 4, 5))
        flat = ops.reshape(tiles, (-1, rows * columns, size * size * channels))
        return self.projection(flat) + self.places


class Mlp(keras.Model):
    def __init__(self):
        super().__init__(name="mlp")
        self.flatten = layers.Flatten()
        self.hidden = [layers.Dense(size, activation="relu") for size in (48, 40)]
        self.scores = layers.Dense(5)

    def call(self, inputs, training=False):
        x = self.flatten(inputs)
        for layer in self.hidden:
            x = layer(x)
        return self.scores(x)


class ConvBlock(layers.Layer):
    def __init__(self, filters):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return ops.relu(self.norm(self.conv(inputs), training=training))


class Cnn(keras.Model):
    def __init__(self):
        super().__init__(name="cnn")
        self.blocks = (ConvBlock(12), ConvBlock(16))
        self.mean = layers.GlobalAveragePooling2D()
        self.classes = layers.Dense(5, activation="softmax")

    def call(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return self.classes(self.mean(inputs))


def text():
    inputs = keras.Input((12,), dtype="int32", name="words")
    x = TransformerBlock()(TokensAndPositions()(inputs))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x), name="text")


def vit():
    inputs = keras.Input((8, 8, 3), name="image")
    x = TransformerBlock()(PatchEncoder()(inputs))
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)), name="vit")


def wrappers():
    inputs = keras.Input((4, 12), name="sequence")
    x = layers.TimeDistributed(layers.Dense(24, activation="relu"))(inputs)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True, unroll=True))(x)
    both = layers.Bidirectional(layers.GRU(8, unroll=True, return_state=True), merge_mode="sum")
    return keras.Model(inputs, layers.Dense(5)(layers.Concatenate()(both(x))), name="wrappers")


def mlp():
    model = Mlp()
    model(np.zeros((2, 6, 6), "float32"))
    return model


def cnn():
    model = Cnn()
    model(np.zeros((2, 6, 6, 3), "float32"))
    return model


EXAMPLES = [text, vit, wrappers, mlp, cnn]


def draw(network, count):
    (info,) = network.inputs
    generator, shape = np.random.default_rng(0), (count, *info.shape[1:])
    if info.dtype == "int32":
        return generator.integers(0, 12, shape).astype(info.dtype)
    return generator.normal(size=shape).astype(info.dtype)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_most_parameters_are_reached_and_full_rank_changes_nothing(example, randomize):
    keras.utils.set_random_seed(0)
    model = example()
    randomize(model, 0)
    network = Network(model)
    kernels = [c.kernel for c in candidates(network) if c.kernel is not None]
    reached = sum(kernel.m * kernel.n * kernel.groups for kernel in kernels)
    assert reached > 0.6 * network.params
    batch = draw(network, 5)
    expected = network.model(batch)
    compressed = exporter.compress(model, "full")
    assert len(compressed.factors) == len(kernels)
    np.testing.assert_allclose(compressed.model(batch), expected, rtol=1e-4, atol=1e-5)
    exact = network.recast("float64").model(batch)
    assert exact.dtype == "float64"
    np.testing.assert_allclose(expected, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_artifacts_are_accepted_and_the_model_comes_back(example, tmp_path, randomize):
    keras.utils.set_random_seed(0)
    model = example()
    randomize(model, 0)
    recipe = exporter.Recipe(rank=0.5, formats=("tflite", "onnx"), output=str(tmp_path / "out"))
    report = exporter.run(recipe, model=model, dataset=exporter.load_dataset("none"))
    assert [(artifact.accepted, artifact.error) for artifact in report.artifacts] == 2 * [
        (True, None)
    ]
    assert report.after.params < report.before.params
    # Keras gives other names to the layers of the next model of the same kind.
    restored = exporter.restore(example, tmp_path / "out")
    batch = draw(Network(restored), 64)
    expected = exporter.compress(model, 0.5).model(batch)
    np.testing.assert_allclose(restored(batch), expected, rtol=1e-5, atol=1e-6)
    restored.compile("adam", "mse")
    losses = restored.fit(batch, np.ones((64, 5)), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("train", ["factored", "projected"])
@pytest.mark.parametrize("example", [text, cnn], ids=lambda example: example.__name__)
def test_inner_layers_are_calibrated_and_trained(example, train):
    keras.utils.set_random_seed(0)
    model = example()
    batch = draw(Network(model), 96)
    data = exporter.load_dataset({"x_train": batch, "y_train": np.arange(96) % 5})
    compressed = exporter.compress(model, 0.5, data=data)
    assert all(factors.data_aware for factors in compressed.factors.values())
    before = compressed.model.get_weights()
    tuned = exporter.finetune(compressed, model, data=data, epochs=2, train=train).compressed
    after = tuned.model.get_weights()
    assert [weight.shape for weight in after] == [weight.shape for weight in before]
    assert not all(map(np.array_equal, after, before))
