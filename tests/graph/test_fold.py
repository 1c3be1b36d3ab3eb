import keras
import numpy as np
import pytest
from keras import layers

from exporter.graph.fold import fold_batch_norms
from exporter.graph.network import Network
from exporter.graph.walk import walk


def batch_norms(model):
    return [path for path, layer in walk(model) if isinstance(layer, layers.BatchNormalization)]


def assert_folds(model, randomize, *, folded, sample_shape=None):
    """Checks which normalisations go, and that the predictions stay."""
    randomize(model, 1)
    shape = sample_shape or model.input_shape[1:]
    inputs = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    expected = model(inputs)
    weights = [weight.copy() for weight in model.get_weights()]
    before = batch_norms(model)
    network, went_into = fold_batch_norms(Network(model))
    result = network.model
    assert sorted(went_into) == sorted(folded)
    assert batch_norms(result) == [path for path in before if path not in folded]
    np.testing.assert_allclose(result(inputs), expected, rtol=1e-5, atol=2e-5)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return result, went_into


LINEAR = {
    "dense": ((6,), lambda: layers.Dense(5, name="linear")),
    "dense_on_sequences": ((4, 6), lambda: layers.Dense(5, use_bias=False, name="linear")),
    "conv1d": ((9, 3), lambda: layers.Conv1D(5, 3, padding="causal", name="linear")),
    "conv2d": ((8, 8, 3), lambda: layers.Conv2D(6, 3, strides=2, use_bias=False, name="linear")),
    "grouped": ((8, 8, 4), lambda: layers.Conv2D(6, 3, groups=2, name="linear")),
    "dilated": ((8, 8, 3), lambda: layers.Conv2D(6, 3, dilation_rate=2, name="linear")),
    "conv3d": ((5, 5, 5, 2), lambda: layers.Conv3D(3, 3, name="linear")),
    "transposed": ((5, 5, 3), lambda: layers.Conv2DTranspose(4, 3, strides=2, name="linear")),
    "separable": ((8, 8, 3), lambda: layers.SeparableConv2D(5, 3, use_bias=False, name="linear")),
    "depthwise": (
        (8, 8, 3),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="linear"),
    ),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_every_linear_layer_takes_the_normalisation_after_it(kind, randomize):
    shape, build = LINEAR[kind]
    model = keras.Sequential(
        [keras.Input(shape), build(), layers.BatchNormalization(name="norm"), layers.ReLU()]
    )
    result, went_into = assert_folds(model, randomize, folded=["norm"])
    assert went_into == {"norm": "linear"}
    linear, original = result.get_layer("linear"), model.get_layer("linear")
    changed = {**original.get_config(), "use_bias": True}
    assert {k: v for k, v in linear.get_config().items() if k in changed} == changed


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 0.1}])
def test_options_of_the_normalisation_count(options, randomize):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="linear"),
            layers.BatchNormalization(name="norm", **options),
            layers.Dense(2),
        ]
    )
    assert_folds(model, randomize, folded=["norm"])


def test_normalisations_that_follow_no_linear_layer_stay(randomize):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="first")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="activated")(x)
    x = layers.BatchNormalization(name="after_activation")(x)
    x = layers.Conv2D(4, 3, name="linear")(x)
    x = layers.ReLU()(x)
    x = layers.BatchNormalization(name="after_relu")(x)
    model = keras.Model(inputs, layers.Flatten()(x))
    result, _ = assert_folds(model, randomize, folded=[])
    assert result is model


def test_an_output_that_something_else_sees_stays(randomize):
    inputs = keras.Input((6,))
    x = layers.Dense(5, name="linear")(inputs)
    y = layers.BatchNormalization(name="norm")(x)
    assert_folds(keras.Model(inputs, layers.Add()([x, y])), randomize, folded=[])


def test_the_last_layer_keeps_its_name(randomize):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), layers.BatchNormalization(name="scores")]
    )
    result, _ = assert_folds(model, randomize, folded=[])
    assert result.layers[-1].name == "scores"


@pytest.mark.parametrize("shared", ["linear", "norm"])
def test_shared_layers_stay(shared, randomize):
    inputs = keras.Input((5,))
    linear = layers.Dense(5, name="linear")
    norm = layers.BatchNormalization(name="norm")
    x = norm(linear(inputs))
    x = layers.ReLU()(x)
    x = norm(layers.Dense(5)(x)) if shared == "norm" else linear(x)
    assert_folds(keras.Model(inputs, layers.Dense(2)(x)), randomize, folded=[])


def test_nested_models_are_entered(randomize):
    body = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="linear"),
            layers.BatchNormalization(name="norm"),
        ],
        name="body",
    )
    model = keras.Sequential([keras.Input((6,)), body, layers.Dense(2)])
    _, went_into = assert_folds(model, randomize, folded=["body/norm"])
    assert went_into == {"body/norm": "body/linear"}


def test_graphs_that_the_layers_are_in_besides_do_not_count(randomize):
    inputs = keras.Input((6,))
    x = layers.Dense(5, name="linear")(inputs)
    features = keras.Model(inputs, layers.ReLU()(x))  # The user's own, on the same layers.
    y = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(2)(y))
    assert_folds(model, randomize, folded=["norm"])
    assert features.count_params() == 6 * 5 + 5


@pytest.mark.slow
def test_mobilenet_loses_all_its_normalisations(randomize):
    model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=7)
    assert_folds(model, randomize, folded=batch_norms(model))
