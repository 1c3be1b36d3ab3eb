"""The callback that keeps kernels at low rank while a model is trained by its own ``fit``."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import exporter
from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates

RANK = 3


def energy_beyond(model, ranks, convolution="channel"):
    """The largest part of its squared norm that a kernel would lose at its rank."""
    kernels = {c.name: c.kernel for c in candidates(Network(model), convolution=convolution)}
    curves = {name: kernels[name].error_curve() for name in ranks}
    return max(curve[ranks[name]] / curve[0] for name, curve in curves.items())


def data_for(model, samples=24):
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 2, (samples, *tensor.shape[1:])) for tensor in model.inputs]
    return x[0] if len(x) == 1 else x, rng.integers(0, 3, samples)


def fit(model, callback, *, epochs=1, **choices):
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    callbacks = [callback, *choices.pop("callbacks", ())]
    x, y = data_for(model)
    return model.fit(x, y, 4, epochs, verbose=0, callbacks=callbacks, **choices)


def small(width=24):
    return keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(width, activation="relu", name="first"),
            layers.Dense(width, activation="relu", name="second"),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )


def images():
    """Kernels in groups, of other layouts than inputs x outputs, and before a normalisation."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(16, 3, use_bias=False, name="plain")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(16, 3, groups=2, padding="same", name="groups")(x)
    x = layers.Conv2DTranspose(12, 3, name="transposed")(x)
    x = layers.SeparableConv2D(16, 3, activation="relu", name="separable")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


def sequences():
    """Attention, a recurrent layer that is called twice, in a nested model, an einsum."""
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 16, name="words")(inputs)
    x = layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = layers.EinsumDense("abc,dc->abd", (5, 16), name="einsum")(x)
    memory = keras.Sequential([keras.Input((5, 16)), layers.LSTM(16, return_sequences=True)])
    x = memory(memory(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


def half():
    policy, former = "mixed_float16", keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        return small()
    finally:
        keras.mixed_precision.set_dtype_policy(former)


@pytest.mark.parametrize("make", [images, pytest.param(sequences, marks=pytest.mark.slow), half])
def test_every_kernel_ends_at_its_rank_and_compress_changes_no_prediction(make):
    model, callback = make(), exporter.RankAware(RANK)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    fit(model, callback)
    assert set(callback.ranks.values()) == {RANK}
    assert energy_beyond(model, callback.ranks) < 1e-9
    assert not any(np.array_equal(v, before[v.path]) for v in model.trainable_variables)
    compressed = exporter.compress(model, rank=RANK)
    assert compressed.plan.ranks == callback.ranks
    x, _ = data_for(model)
    tolerance = 2e-3 if make is half else 1e-5
    np.testing.assert_allclose(compressed.model(x), model(x), atol=tolerance)


def test_convolutions_may_be_cut_the_other_way():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(8, 3, name="plain"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    callback = exporter.RankAware({"plain": 2}, convolution="spatial")
    fit(model, callback)
    assert energy_beyond(model, {"plain": 2}, "spatial") < 1e-9
    assert energy_beyond(model, {"plain": 2}, "channel") > 1e-3


def test_validation_and_saved_weights_are_those_of_the_cut_and_its_cost_is_logged(tmp_path):
    model, callback = small(), exporter.RankAware(RANK, every=100)
    file = tmp_path / "last.weights.h5"
    saver = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    x, y = data_for(model)
    history = fit(model, callback, epochs=2, validation_data=(x, y), callbacks=[saver]).history
    first, second = history["discarded_energy"]
    assert 1 > first > second > 0
    cut = exporter.compress(model, rank=RANK).model
    cut.compile(loss="sparse_categorical_crossentropy")
    assert cut.evaluate(x, y, verbose=0) == pytest.approx(history["val_loss"][-1], abs=1e-5)
    model.load_weights(file)
    assert energy_beyond(model, callback.ranks) < 1e-9
    model.evaluate(x, y, verbose=0, callbacks=[callback])


def test_what_is_put_in_as_training_ends_is_truncated_too():
    model, callback = small(), exporter.RankAware(RANK, every=2)
    ranks = {}

    class Restore(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            ranks.update(callback.ranks)
            model.get_layer("first").kernel.assign(np.random.default_rng(0).normal(size=(12, 24)))

    restore = Restore()
    model.compile(
        keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=None), "mse",
        steps_per_execution=3,
    )  # fmt: skip
    x, _ = data_for(model)
    model.fit(x, np.ones((len(x), 3)), 4, verbose=0, callbacks=[restore, callback])
    assert energy_beyond(model, ranks) < 1e-9


def test_frozen_kernels_are_cut_before_the_others_train():
    model = small()
    model.get_layer("first").trainable = False
    callback = exporter.RankAware({"first": 2})
    fit(model, callback)
    assert energy_beyond(model, {"first": 2}) < 1e-9


def test_replicas_stay_alike():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = small()
    callback = exporter.RankAware(0.25)
    x, y = data_for(model)
    with strategy.scope():
        model.compile("sgd", "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
    assert energy_beyond(model, callback.ranks) < 1e-9
    assert exporter.compress(model, rank=0.25).plan.ranks == callback.ranks


def test_models_that_fit_builds_and_ranks_that_weights_tell():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(24), layers.Dense(3, activation="softmax")

        def call(self, inputs):
            return self.second(self.first(inputs))

    model, callback = Late(), exporter.RankAware("stable")
    model.compile("sgd", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 20)).astype("float32"), rng.integers(0, 3, 24)
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert callback.ranks
    assert exporter.compress(model, rank=callback.ranks).plan.ranks == callback.ranks
    assert energy_beyond(model, callback.ranks) < 1e-9


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": 3, "every": 0}, "every must be a whole number"),
        ({"rank": 3, "every": True}, "every must be a whole number"),
        ({"rank": 3, "convolution": "tucker2"}, "channel"),
        ({"rank": 3, "convolution": "half"}, "convolution"),
    ],
)
def test_bad_values_are_refused_at_once(choices, message):
    with pytest.raises(RecipeError, match=message):
        exporter.RankAware(**choices)


@pytest.mark.parametrize("rank", [{"frist": 3}, 99, 12, "none"])
def test_ranks_that_do_not_fit_are_refused_before_training(rank):
    model = small()
    before = model.get_weights()
    with pytest.raises(RecipeError, match="first"):
        fit(model, exporter.RankAware(rank))
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_training_that_diverges_is_no_error_of_its_own():
    model = small()
    model.compile(keras.optimizers.SGD(1e30), "sparse_categorical_crossentropy")
    x, y = data_for(model)
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(x, y, 4, 3, verbose=0, callbacks=[exporter.RankAware(RANK), stop]).history
    assert np.isnan(history["discarded_energy"]).any()
    assert np.isnan(model.get_layer("first").kernel.numpy()).any()


def test_digits_lose_less_by_the_cut_than_without(digits):
    """The same training, from the same weights, with the same batches."""
    x, y = digits.train.inputs["x"][:1500] / 255, digits.train.labels["y"][:1500]
    reached = []
    for callbacks in ([], [exporter.RankAware(rank=5)]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(64, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y, 32, 5, verbose=0, callbacks=callbacks)
        cut = exporter.compress(model, rank=5).model
        reached.append([np.mean(m(x).numpy().argmax(1) == y) for m in (model, cut)])
    (_, plain_cut), (aware, aware_cut) = reached
    assert aware_cut == pytest.approx(aware, abs=0.003)
    assert aware_cut > plain_cut + 0.1
