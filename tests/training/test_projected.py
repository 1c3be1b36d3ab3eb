"""Training at the truncation, against automatic differentiation of the full model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.graph.network import Network
from exporter.graph.rewrite import rewrite
from exporter.lowrank.linalg.svd import truncated_svd
from exporter.training.data import Batch
from exporter.training.objective import Objective
from exporter.training.projected import Projected


def dense():
    return [keras.Input((7,), name="x"), layers.Dense(9, activation="tanh", name="cut")]


def sequence():
    return [keras.Input((5, 7), name="x"), layers.Dense(9, name="cut"), layers.Flatten()]


def convolution():
    conv = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="cut")
    return [keras.Input((6, 6, 4), name="x"), conv, layers.Flatten()]


def causal():
    conv = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, use_bias=False, name="cut")
    return [keras.Input((6, 4), name="x"), conv, layers.Flatten()]


def einsum():
    layer = layers.EinsumDense("abc,cd->abd", (5, 9), bias_axes="d", activation="gelu", name="cut")
    return [keras.Input((5, 7), name="x"), layer, layers.Flatten()]


def embedding():
    return [
        keras.Input((5,), dtype="int32", name="x"),
        layers.Embedding(11, 9, name="cut"),
        layers.Flatten(),
    ]


KINDS = [dense, sequence, convolution, causal, einsum, embedding]


@pytest.fixture
def make(randomize):
    def build(kind):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([*kind(), layers.Dense(3, activation="softmax", name="y")])
        randomize(model, 0)
        return model

    return build


def batch_of(model, seed=0):
    rng = np.random.default_rng(seed)
    shape = (10, *model.input_shape[1:])
    whole = model.inputs[0].dtype == "int32"
    x = rng.integers(0, 11, shape) if whole else rng.normal(size=shape)
    return {"x": tf.constant(x, model.inputs[0].dtype)}, {"y": tf.constant(rng.integers(0, 3, 10))}


def truncate_in_place(model, rank):
    """Puts the truncation in the place of a kernel; all that is tested have inputs first."""
    variable = model.get_layer("cut").weights[0]
    matrix = variable.numpy().reshape(-1, variable.shape[-1])
    svd = truncated_svd(matrix, rank)
    variable.assign(((svd.u * svd.s) @ svd.vt).reshape(variable.shape))


def ending(variable):
    """The layer and the weight, whatever model they are in."""
    return "/".join(variable.path.split("/")[-2:])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_at_the_truncation(kind, make):
    model = make(kind)
    phase = Projected(Network(model), {"cut": 3})
    assert phase.left_out == ()
    objective = Objective(Network(model).families({}), {}, 0.0, 1.0)
    inputs, labels = batch_of(model)

    phase.prepare()
    loss, gradients = phase.gradients(objective, Batch(inputs, labels, {}), tf.constant(0.1))

    at_truncation = rewrite(model, {})
    truncate_in_place(at_truncation, 3)
    with tf.GradientTape() as tape:
        predicted = at_truncation(inputs["x"])
        expected = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(labels["y"], predicted)
        )
    found = {ending(v): g for v, g in zip(phase.trained, gradients, strict=True)}
    wanted = tape.gradient(expected, at_truncation.trainable_variables)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert len(gradients) == len(wanted)
    for variable, gradient in zip(at_truncation.trainable_variables, wanted, strict=True):
        actual = found[ending(variable)]
        np.testing.assert_allclose(
            actual, tf.convert_to_tensor(gradient), atol=2e-5, err_msg=variable.path
        )


def test_layer_that_is_called_twice_gets_the_sum_of_its_gradients(randomize):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    shared = layers.Dense(8, activation="tanh", name="cut")
    outputs = layers.Dense(3, activation="softmax", name="y")(shared(shared(inputs)))
    model = keras.Model(inputs, outputs)
    randomize(model, 0)
    phase = Projected(Network(model), {"cut": 2})
    objective = Objective({"y": "categorical"}, {}, 0.0, 1.0)
    given, labels = batch_of(model)
    phase.prepare()
    _, gradients = phase.gradients(objective, Batch(given, labels, {}), tf.constant(0.1))
    truncate_in_place(model, 2)
    with tf.GradientTape() as tape:
        predicted = model(given["x"])
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels["y"], predicted))
    np.testing.assert_allclose(gradients[0], tape.gradient(loss, shared.kernel.value), atol=2e-5)


def test_student_is_the_truncation_of_the_full_weights_at_every_step(tuner, classifier):
    made, compressed = tuner(classifier, 4, train="projected", learning_rate=0.01, finetune=4)
    tuned = made.run(compressed)
    kernel = tuned.updated.get_layer("hidden").kernel.numpy()
    assert not np.allclose(kernel, classifier.get_layer("hidden").kernel)
    u, v = (w.numpy() for w in tuned.compressed.factors["hidden"].weights)
    optimum = truncated_svd(kernel, 4)
    np.testing.assert_allclose(u @ v, (optimum.u * optimum.s) @ optimum.vt, atol=1e-4)


@pytest.mark.slow
def test_kinds_that_cannot_take_part_are_trained_at_full_rank_and_cut_afterwards(
    tuner, listener, randomize
):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 6), name="x"),
            layers.LSTM(8, name="memory"),
            layers.Dense(9, activation="relu", name="hidden"),
            layers.Dense(2, activation="softmax", name="y"),
        ]
    )
    randomize(model, 0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4, 6))
    data = {"x": x, "y": (x[:, -1, 0] > 0).astype(int)}
    options = {"train": "projected", "learning_rate": 0.01, "distill": 0.0, "finetune": 8}
    made, compressed = tuner(model, 2, data=data, **options)
    before = model.get_layer("memory").cell.kernel.numpy()
    tuned = made.run(compressed)
    assert tuned.at_full_rank == ("memory",)
    assert "Trained at full rank, and cut afterwards: memory" in listener.notes
    assert np.linalg.matrix_rank(tuned.updated.get_layer("memory").cell.kernel, tol=1e-4) > 2
    assert not np.allclose(tuned.updated.get_layer("memory").cell.kernel, before)
    assert set(tuned.compressed.factors) == {"memory", "hidden"}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("start", ["truncated", "updated"])
def test_both_models_of_the_notebook_come_out(start, tuner, classifier, blobs):
    made, compressed = tuner(classifier, 3, train="projected", export_from=start)
    tuned = made.run(compressed)
    assert tuned.truncated.count_params() == compressed.model.count_params()
    assert tuned.updated.count_params() == classifier.count_params()
    exported = tuned.compressed.model
    same = np.allclose(exported(blobs["x"][:9]), tuned.truncated(blobs["x"][:9]), atol=1e-6)
    # Without calibration data, both are cut by their weights.
    assert same
    assert (exported is tuned.truncated) == (start == "truncated")
