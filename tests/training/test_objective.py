"""The loss, against Keras and NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.training.objective import Objective

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 4, 6)
LOGITS = RNG.normal(size=(6, 4)).astype("float32")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def loss_of(family, outputs, labels=None, teacher=None, *, distill=0.0, temperature=1.0, own=None):
    objective = Objective({"y": family}, {"y": own} if own else {}, distill, temperature)
    given = {} if labels is None else {"y": tf.constant(labels)}
    taught = {} if teacher is None else {"y": tf.constant(teacher)}
    return objective({"y": tf.constant(outputs)}, given, taught).numpy()


@pytest.mark.parametrize(
    ("family", "outputs", "labels", "expected"),
    [
        (
            "categorical",
            softmax(LOGITS),
            CLASSES,
            keras.losses.sparse_categorical_crossentropy(CLASSES, softmax(LOGITS)),
        ),
        (
            "categorical_logits",
            LOGITS,
            CLASSES,
            keras.losses.sparse_categorical_crossentropy(CLASSES, LOGITS, from_logits=True),
        ),
        (
            "categorical",
            softmax(LOGITS),
            np.eye(4, dtype="float32")[CLASSES],
            keras.losses.sparse_categorical_crossentropy(CLASSES, softmax(LOGITS)),
        ),
        (
            "bernoulli",
            sigmoid(LOGITS[:, :1]),
            CLASSES % 2,
            keras.losses.binary_crossentropy((CLASSES % 2)[:, None], sigmoid(LOGITS[:, :1])),
        ),
        ("gaussian", LOGITS, LOGITS + 2, np.full(6, 4.0)),
        ("gaussian", LOGITS[:, :1], CLASSES, (LOGITS[:, 0] - CLASSES) ** 2),
    ],
)
def test_task_loss_is_that_of_keras(family, outputs, labels, expected):
    np.testing.assert_allclose(loss_of(family, outputs, labels), expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_of_distributions(temperature):
    teacher = RNG.normal(size=(6, 4)).astype("float32")
    p, q = softmax(teacher / temperature), softmax(LOGITS / temperature)
    expected = temperature**2 * np.sum(p * np.log(p / q), axis=-1)
    for outputs, taught, family in (
        (LOGITS, teacher, "categorical_logits"),
        (softmax(LOGITS), softmax(teacher), "categorical"),
    ):
        actual = loss_of(family, outputs, teacher=taught, temperature=temperature)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_divergence_of_two_classes_is_that_of_their_distribution():
    p, q = sigmoid(LOGITS[:, :1]), sigmoid(LOGITS[:, 1:2])
    both = [np.concatenate([x, 1 - x], axis=-1) for x in (p, q)]
    np.testing.assert_allclose(
        loss_of("bernoulli", q, teacher=p, temperature=2.0),
        loss_of("categorical", both[1], teacher=both[0], temperature=2.0),
        rtol=1e-4,
        atol=1e-7,
    )


def test_divergence_of_values_is_their_squared_error():
    np.testing.assert_allclose(loss_of("gaussian", LOGITS, teacher=LOGITS + 3), np.full(6, 9.0))


def test_weighs_task_and_divergence():
    outputs, teacher = softmax(LOGITS), softmax(LOGITS[::-1])
    task = loss_of("categorical", outputs, CLASSES)
    divergence = loss_of("categorical", outputs, teacher=teacher)
    both = loss_of("categorical", outputs, CLASSES, teacher, distill=0.3)
    np.testing.assert_allclose(both, 0.7 * task + 0.3 * divergence, rtol=1e-5)


def test_certain_predictions_keep_the_loss_finite():
    certain = np.eye(4, dtype="float32")[CLASSES]
    wrong = np.eye(4, dtype="float32")[(CLASSES + 1) % 4]
    losses = loss_of("categorical", wrong, CLASSES, certain, distill=0.5, temperature=2.0)
    assert np.isfinite(losses).all()
    assert (losses > 1).all()


def test_teacher_is_needed_for_distillation_and_where_labels_are_missing():
    families = {"a": "categorical", "b": "gaussian"}
    assert Objective(families, {}, 0.1, 1.0).needs_teacher({"a", "b"})
    assert Objective(families, {}, 0.0, 1.0).needs_teacher({"a"})
    assert not Objective(families, {}, 0.0, 1.0).needs_teacher({"a", "b"})


@pytest.fixture(scope="module")
def two_headed():
    inputs = keras.Input((3,))
    heads = [layers.Dense(2, name="first-head")(inputs), layers.Dense(1, name="second")(inputs)]
    return keras.Model(inputs, heads)


@pytest.mark.parametrize(
    "loss",
    [
        "mean_absolute_error",
        keras.losses.MeanAbsoluteError(),
        ["mae", keras.losses.mean_absolute_error],
        {"first-head": "mae", "second": "mae"},
        {"first_head": "mae", "second": "mae"},
        lambda y, p: tf.reduce_mean(tf.abs(y - p), axis=-1),
    ],
)
def test_knows_losses_as_keras_takes_them(loss, two_headed):
    functions = Network(two_headed).losses(loss)
    assert list(functions) == ["first_head", "second"]
    for name, width in (("first_head", 2), ("second", 1)):
        y, p = (RNG.normal(size=(5, width)).astype("float32") for _ in range(2))
        objective = Objective({name: "gaussian"}, functions, 0.0, 1.0)
        losses = objective({name: tf.constant(p)}, {name: tf.constant(y)}, {})
        np.testing.assert_allclose(losses, np.abs(y - p).mean(axis=-1), rtol=1e-5)


def test_output_without_a_loss_of_its_own_gets_that_of_its_kind(two_headed):
    assert list(Network(two_headed).losses({"second": "mae"})) == ["second"]
    assert Network(two_headed).losses(None) == {}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("no_such_loss", "The loss 'no_such_loss' is none of Keras"),
        ({"third": "mse"}, r"A loss is given for \['third'\]. The model's outputs: \['first_head'"),
        (["mse"], "needs one for each output .* Received: 1."),
    ],
)
def test_refuses_a_loss_that_does_not_fit(loss, message, two_headed):
    with pytest.raises(RecipeError, match=message):
        Network(two_headed).losses(loss)
