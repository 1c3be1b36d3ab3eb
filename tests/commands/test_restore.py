import keras
import numpy as np
import pytest
from keras import layers

import exporter
from exporter.commands.weights import Weights
from exporter.graph.network import Network
from exporter.options.groups import Cut
from exporter.output import COMPRESSED_FILE, PLAN_FILE


class Block(layers.Layer):
    def __init__(self, size=8):
        super().__init__()
        self.norm, self.attention = layers.LayerNormalization(), layers.MultiHeadAttention(2, 4)
        self.convolve = keras.Sequential([layers.Conv1D(size, 3), layers.BatchNormalization()])

    def call(self, inputs):
        normed = self.norm(inputs)
        return self.convolve(self.attention(normed, normed))


def build(classes=4, hidden=0):
    inputs = keras.Input((6, 8))
    x = layers.Flatten()(Block()(inputs))
    if hidden:
        x = layers.Dense(hidden, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(classes, activation=lambda x: x * 2)(x))


@pytest.fixture
def batch():
    return np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")


def written(model, folder, cut):
    """Compresses a model and saves it as a run does."""
    options = {"fold": cut.fold, "merge": cut.merge, "channels": cut.channels}
    compressed = exporter.compress(model, 0.5, **options)
    Weights(Network(model), None, cut, compressed).save(folder)
    return compressed


@pytest.mark.parametrize("cut", [Cut(), Cut(fold=False, merge=False)], ids=["merged", "apart"])
@pytest.mark.slow
@pytest.mark.parametrize("given", [build, build()], ids=["function", "model"])
def test_the_compressed_model_comes_back_and_trains(given, cut, batch, tmp_path, randomize):
    model = build()
    randomize(model, 0)
    compressed = written(model, tmp_path, cut)
    restored = exporter.restore(given, tmp_path)
    np.testing.assert_allclose(restored(batch), compressed.model(batch), rtol=1e-5, atol=1e-6)
    assert not restored.compiled
    restored.compile("adam", "mse")
    losses = restored.fit(batch, np.ones((16, 4)), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_model_without_some_of_its_channels_comes_back(batch, tmp_path, randomize):
    model = build(hidden=32)
    randomize(model, 0)
    compressed = written(model, tmp_path, Cut(channels=0.6))
    (group,) = compressed.channels
    assert group.after < group.before == 32
    restored = exporter.restore(lambda: build(hidden=32), tmp_path)
    np.testing.assert_allclose(restored(batch), compressed.model(batch), rtol=1e-5, atol=1e-6)
    with pytest.raises(exporter.ModelError, match="its layers make other channels"):
        exporter.restore(build(hidden=24), tmp_path)


def test_a_folder_without_a_plan(build, tmp_path):
    compressed = written(build("tiny"), tmp_path, Cut())
    loaded = keras.models.load_model(tmp_path / COMPRESSED_FILE)
    assert len(loaded.layers) == len(compressed.model.layers)
    with pytest.raises(exporter.OutputError, match=rf"must hold {PLAN_FILE}.*load_model"):
        exporter.restore(build("tiny"), tmp_path)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("other", [lambda: build(classes=5), lambda: keras.Sequential([Block()])])
def test_another_model_than_the_one_that_was_compressed(other, tmp_path):
    written(build(), tmp_path, Cut())
    with pytest.raises(exporter.ModelError):
        exporter.restore(other, tmp_path)
