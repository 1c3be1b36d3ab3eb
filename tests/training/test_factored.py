"""Training of the factors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.lowrank.ranks.policy import FixedRank
from exporter.options.groups import Cut
from exporter.training.data import Batch
from exporter.training.factored import Factored, squared_product_norm
from exporter.training.objective import Objective


@pytest.fixture
def cut():
    def make(model, rank=2, **options):
        engine = Engine(Network(model), None, Cut(method="svd", **options))
        return engine.factorize(engine.plan(FixedRank(rank)))

    return make


def test_norm_of_the_product_comes_from_small_matrices(cut, classifier):
    factors = cut(classifier, 3).factors["hidden"]
    u, v = (weight.numpy() for weight in factors.weights)
    assert float(squared_product_norm(factors)) == pytest.approx(
        np.linalg.norm(u @ v) ** 2, rel=1e-5
    )


def test_decay_acts_on_products_of_two_factors_alone(cut):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(8, 3, name="plain"),
            layers.Conv2D(8, 3, groups=2, name="grouped"),
            layers.Flatten(),
            layers.Dense(9, name="dense"),
        ]
    )
    factors = cut(model).factors
    assert {name for name, each in factors.items() if each.is_plain_pair} == {"plain", "dense"}
    assert not any(each.is_plain_pair for each in cut(model, merge=False).factors.values())


def test_gradient_of_the_decay(cut, classifier):
    compressed = cut(classifier, 3)
    batch = Batch({"features": tf.zeros((4, 12))}, {"classes": tf.zeros(4, tf.int64)}, {})
    objective = Objective({"classes": "categorical"}, {}, 0.0, 1.0)

    def gradients(decay):
        phase = Factored(compressed.network, compressed.factors, decay)
        loss, found = phase.gradients(objective, batch, tf.constant(0.0))
        assert float(loss) == 0.0  # Penalties are no part of it.
        return dict(zip((v.path for v in phase.trained), found, strict=True))

    u, v = (weight.numpy() for weight in compressed.factors["hidden"].weights)
    path = compressed.factors["hidden"].weights[0].path
    np.testing.assert_allclose(gradients(0.5)[path], 0.5 * (u @ v) @ v.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients(0.0)[path], 0.0, atol=1e-6)


def test_frozen_layers_stay(tuner, classifier):
    classifier.get_layer("second").trainable = False
    made, compressed = tuner(classifier, learning_rate=0.01)
    before = {w.path: w.numpy() for w in compressed.model.weights}
    made.run(compressed)
    for weight in compressed.model.weights:
        frozen = "second" in weight.path or "seed" in weight.path
        assert np.array_equal(weight, before[weight.path]) == frozen, weight.path


def test_learns_without_labels_what_the_baseline_predicts(tuner, classifier, blobs):
    made, compressed = tuner(
        classifier, data={"x": blobs["x"]}, learning_rate=0.01, finetune=20, method="svd"
    )

    def distance():
        return float(np.mean((compressed.model(blobs["x"]) - classifier(blobs["x"])) ** 2))

    before = distance()
    made.run(compressed)
    assert distance() < 0.5 * before


def test_api_trains_the_model_in_place(cut, classifier, blobs):
    import exporter

    compressed = cut(classifier, 3)
    classifier.compile("adam", "sparse_categorical_crossentropy")
    before = [weight.numpy() for weight in compressed.model.weights]
    data = exporter.load_dataset(blobs)
    tuned = exporter.finetune(compressed, classifier, data=data, epochs=4, learning_rate=0.01)
    assert tuned.compressed is compressed
    assert tuned.histories[0].best > 0
    moved = [
        not np.array_equal(a, b) for a, b in zip(before, compressed.model.weights, strict=True)
    ]
    assert any(moved)


@pytest.mark.slow
def test_compressed_model_trains_on_under_plain_keras(tuner, classifier, blobs):
    made, compressed = tuner(classifier)
    made.run(compressed)
    model = compressed.model
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(blobs["x"], blobs["y"], epochs=15, batch_size=32, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert {w.shape for w in compressed.factors["hidden"].weights} == {(12, 3), (3, 32)}
