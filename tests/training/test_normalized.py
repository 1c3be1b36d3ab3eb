import keras
import numpy as np
import pytest

from exporter.commands.compress import compress
from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.lowrank.ranks.named import policy_for
from exporter.options.groups import Cut, Goal
from exporter.training.data import Batch
from exporter.training.normalized import Normalized, normalizable


def cnn():
    """Builds two paths of convolutions with batch normalisations, one of them in a nested model."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="first_norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="depthwise_norm")(y))
    inner = keras.Input((8, 8, 12))
    z = layers.Conv2D(12, 3, padding="same", name="second")(inner)
    inner = keras.Model(inner, layers.BatchNormalization(name="second_norm")(z), name="inner")
    x = layers.Add()([y, layers.Activation("relu")(inner(x))])
    outputs = layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.2, 1.0, weight.shape) * generator.choice([-0.5, 1.0]))
        if "variance" in weight.name:
            weight.assign(generator.uniform(0.5, 2.0, weight.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(64, 8, 8, 3)).astype(np.float32)


def cut(model, convolution):
    engine = Engine(Network(model), None, Cut(method="svd", convolution=convolution))
    return engine, engine.factorize(engine.plan(policy_for(Goal(rank=4))))


@pytest.mark.parametrize("convolution", ["channel", "spatial", "tucker2"])
def test_normalisations_change_nothing_until_they_train_and_fold_into_what_they_did(
    convolution, images
):
    engine, compressed = cut(cnn(), convolution)
    assert set(engine.folded) == {"first_norm", "depthwise_norm", "inner/second_norm"}
    before = compressed.model.predict(images, verbose=0)
    batches = [Batch({"image": images[i : i + 16]}, {}, {}) for i in range(0, 64, 16)]
    normalized = Normalized(compressed, engine.folded.values(), batches)
    trained = normalized.compressed.model
    norms = [
        layer
        for layer in normalized.compressed.network.layers.values()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 3
    np.testing.assert_allclose(trained.predict(images, verbose=0), before, rtol=1e-4, atol=1e-4)
    # Statistics are those of the data: a whole batch normalises to the same outputs.
    np.testing.assert_allclose(trained(images, training=True), before, rtol=1e-2, atol=1e-2)
    for factors in normalized.compressed.factors.values():
        assert all(any(w is each for each in trained.weights) for w in factors.weights)
    generator = np.random.default_rng(2)
    for weight in trained.weights:
        weight.assign(weight * generator.uniform(0.7, 1.4, weight.shape))
    expected = trained.predict(images, verbose=0)
    assert np.abs(expected - before).max() > 0.1
    normalized.fold_into(compressed.network)
    np.testing.assert_allclose(
        compressed.model.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("convolution", ["channel", "spatial", "tucker2"])
def test_kernels_before_normalisations_train_at_one_scale(convolution, images):
    """Folding leaves the first kernel with thousandths, where inputs are bytes."""
    model = cnn()
    for name, factor in {"first_norm": 1e-3, "depthwise_norm": 1e3}.items():
        gamma = model.get_layer(name).gamma
        gamma.assign(gamma * factor)
    engine, compressed = cut(model, convolution)
    batches = [Batch({"image": images}, {}, {})]
    network = Normalized(compressed, engine.folded.values(), batches).compressed.network
    before = compressed.model.predict(images, verbose=0)
    np.testing.assert_allclose(
        network.model.predict(images, verbose=0),
        before,
        rtol=1e-3,
        atol=1e-3 * np.abs(before).max(),
    )
    for path, layer in network.layers.items():
        if not path.startswith("scores") and isinstance(
            layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D
        ):
            kernel = layer.get_weights()[0]
            axes = (0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (0, 1, 2)
            norms = np.sqrt((kernel**2).sum(axis=axes))
            assert np.sqrt((norms**2).mean()) == pytest.approx(1, rel=1e-3), path


def without_norms():
    """Builds convolutions of which some have a normalisation, give outputs, or see one position."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(12, 3, padding="same", activation="swish", name="second")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Conv2D(12, 3, name="normalized")(layers.Dropout(0.1)(x))
    x = layers.BatchNormalization(name="norm")(x)
    frozen = layers.Conv2D(12, 1, activation="relu", name="frozen")
    frozen.trainable = False
    x = frozen(x)
    x = layers.Conv2D(12, 1, activation=layers.LeakyReLU(), name="custom")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(12, 1, activation="sigmoid", name="gate")(gate)])
    places = layers.Conv2D(4, 3, name="places")(x)
    return keras.Model(inputs, [places, layers.Dense(4, name="scores")(layers.Flatten()(x))])


@pytest.mark.parametrize("fold", [True, False])
def test_convolutions_that_lack_a_normalisation_get_one(images, fold, randomize):
    model = without_norms()
    randomize(model, 3)
    engine = Engine(Network(model), None, Cut(method="svd", fold=fold))
    compressed = engine.factorize(engine.plan(policy_for(Goal(rank=4))))
    paths = normalizable(engine, compressed)
    assert set(paths) == {"first", "second", "depthwise", *(["normalized"] if fold else [])}
    normalized = Normalized(compressed, paths, [Batch({"image": images}, {}, {})])
    trained, before = normalized.compressed.model, compressed.model.predict(images, verbose=0)
    for now, then in zip(trained.predict(images, verbose=0), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-3, atol=1e-3 * np.abs(then).max())
    generator = np.random.default_rng(2)
    for weight in trained.weights:
        weight.assign(weight * generator.uniform(0.7, 1.4, weight.shape))
    expected = trained.predict(images, verbose=0)
    normalized.fold_into(compressed.network)
    folded = compressed.model.predict(images, verbose=0)
    for now, then, once in zip(folded, expected, before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-3, atol=1e-3 * np.abs(then).max())
        assert np.abs(then - once).max() > 0.1 * np.abs(once).max()


def test_without_normalisations_the_model_itself_is_trained(images):
    compressed = compress(cnn(), rank=4, method="svd")
    normalized = Normalized(compressed, (), ())
    assert normalized.compressed is compressed
    before = compressed.model.get_weights()
    normalized.fold_into(compressed.network)
    for left, right in zip(before, compressed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
