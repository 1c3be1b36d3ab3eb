"""Data reach a model as it was trained, whatever that was."""

import keras
import numpy as np
import pytest
from keras import layers

from exporter.data import Scaling, load_dataset
from exporter.errors import DataError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network

RNG = np.random.default_rng(0)
COUNT = 300


@pytest.fixture(scope="module")
def images():
    """Images of bytes whose upper half is brighter in one of two classes."""
    labels = RNG.integers(0, 2, COUNT)
    values = RNG.integers(0, 200, (COUNT, 6, 6, 3))
    values[labels == 1, :3] += 55
    return values.astype("uint8"), labels


def classifier(first=(), head=True):
    inputs = keras.Input((6, 6, 3), name="image")
    x = inputs
    for layer in first:
        x = layer(x)
    x = layers.Dense(16, "relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(2, "softmax", name="p")(x) if head else x)


def trained(model, x, y):
    keras.utils.set_random_seed(1)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=8, verbose=0)
    return Network(model)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scale", ["unit", "none", "symmetric", "caffe", "torch"])
def test_labels_tell_the_scale(images, scale):
    x, y = images
    normalize = [
        layers.Normalization(
            mean=Scaling.of(scale)(x).mean(), variance=np.var(Scaling.of(scale)(x))
        )
    ]
    network = trained(classifier(normalize), Scaling.of(scale)(x).astype("float32"), y)
    dataset = fitted(load_dataset({"x": x, "y": y}), network)
    assert dataset.normalization["image"] == Scaling.of(scale).normalization
    assert any("the loss on labels is" in note for note in dataset.notes)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scale", ["unit", "none", "symmetric"])
def test_without_labels_the_statistics_in_the_weights_tell(images, scale):
    x, y = images
    values = Scaling.of(scale)(x).astype("float32")
    keras.utils.set_random_seed(1)
    model = classifier(
        [layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(momentum=0.5)]
    )
    network = trained(model, values, y)
    dataset = fitted(load_dataset({"x": x}), network)
    assert dataset.normalization["image"] == Scaling.of(scale).normalization


def test_without_any_evidence_images_are_scaled_as_is_usual_and_that_is_said(images):
    x, _ = images
    dataset = fitted(load_dataset({"x": x}), Network(classifier()))
    assert dataset.train.inputs["image"].max() <= 1
    assert "image: values of 0 to 255, scaled to [0, 1]: as is usual" in dataset.notes[-1]


def test_arithmetic_in_the_graph_is_left_to_do_its_work(images):
    x, _ = images
    inputs = keras.Input((6, 6, 3), name="image")
    scaled = keras.applications.mobilenet_v2.preprocess_input(inputs)
    network = Network(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(scaled))))
    dataset = fitted(load_dataset({"x": x}), network)
    assert dataset.train.inputs["image"].max() > 1
    assert "the model rescales them itself" in dataset.notes[-1]


@pytest.mark.parametrize("nested", [False, True])
def test_tokens_reach_their_embedding_as_they_are(nested):
    inputs = keras.Input((8,), name="tokens")
    layer = layers.Embedding(200, 4)
    if nested:
        layer = keras.Sequential([keras.Input((8,)), layer])
    network = Network(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layer(inputs)))))
    x = RNG.integers(0, 200, (20, 8)).astype("uint8")
    dataset = fitted(load_dataset({"x": x, "y": np.arange(20) % 2}), network)
    assert dataset.train.inputs["tokens"].max() > 1
    assert "indices of an Embedding" in dataset.notes[-1]


def test_flags_and_features_are_left_as_they_are():
    network = Network(keras.Sequential([keras.Input((8,), name="x"), layers.Dense(2)]))
    for x in (RNG.integers(0, 2, (20, 8)).astype("uint8"), RNG.integers(0, 90, (20, 8))):
        dataset = fitted(load_dataset({"x": x}), network)
        assert dataset.train.inputs["x"].max() == x.max() or dataset.train.inputs["x"].max() >= 1


def test_labels_of_an_autoencoder_get_the_scale_of_its_inputs(images):
    x, _ = images
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3), name="image"),
            layers.Conv2D(3, 1, activation="sigmoid", name="out"),
        ]
    )
    dataset = fitted(load_dataset({"x": x, "y": x}), Network(model))
    np.testing.assert_array_equal(dataset.train.labels["out"], dataset.train.inputs["image"])
    assert dataset.train.labels["out"].max() <= 1


def test_what_the_user_says_counts(images):
    x, _ = images
    network = Network(classifier())
    for scale in ("none", ((10.0,), (20.0,)), {"image": "caffe"}):
        dataset = fitted(load_dataset({"x": x}), network, scale)
        one = scale["image"] if isinstance(scale, dict) else scale
        assert dataset.normalization["image"] == Scaling.of(one).normalization
    with pytest.raises(
        DataError,
        match=r"scale is given for \['img'\]. The inputs .*\['image'\]. Did you mean 'image'",
    ):
        fitted(load_dataset({"x": x}), network, {"img": "unit"})


def test_a_fixed_batch_may_be_larger_than_the_data(images):
    x, y = images
    inputs = keras.Input(batch_shape=(512, 6, 6, 3), name="image")
    network = Network(keras.Model(inputs, layers.Dense(2, "softmax")(layers.Flatten()(inputs))))
    assert fitted(load_dataset({"x": x[:20], "y": y[:20]}), network).normalization
