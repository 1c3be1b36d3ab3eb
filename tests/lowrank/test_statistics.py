"""Moments and gradients gathered from small models, against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

import exporter
from exporter.data import Task
from exporter.errors import ModelError
from exporter.graph import steps
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.walk import walk
from exporter.lowrank import statistics
from exporter.lowrank.calibration import Calibration
from exporter.lowrank.candidates import candidates
from exporter.lowrank.statistics import Cascade, gather


@pytest.fixture
def make(randomize):
    """Finishes a model: random biases, and its kernels by name."""

    def finish(model):
        keras.utils.set_random_seed(0)
        randomize(model, 0)
        return model, kernels_of(model)

    return finish


def kernels_of(model):
    return {c.name: c.kernel for c in candidates(Network(model)) if c.kernel is not None}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape).astype("float32")


def sequential():
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            # Not in the order of the alphabet.
            layers.Dense(5, activation="tanh", name="late"),
            layers.Dense(4, use_bias=False, name="early"),
            layers.Dense(3, activation="softmax", name="middle"),
        ]
    )


def outputs_of(kernel, x):
    """What a Dense kernel gives for all rows of its inputs, without bias; rows x 1 x n."""
    matrix = kernel.variable.numpy().astype("float64")
    return (x.reshape(-1, len(matrix)) @ matrix)[:, None]


def inputs_of(model, layer, x):
    """What a layer of a functional model gets."""
    return np.asarray(keras.Model(model.inputs, layer.input)([x]))


def assert_moments(moments, y, z=None, *, centred=True):
    """Checks moments of outputs, rows x g x n."""

    def second(left, right):
        if centred:
            left, right = left - left.mean(axis=0), right - right.mean(axis=0)
        return np.einsum("rgi,rgj->gij", left, right) / len(left)

    tight = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(moments.mean, centred * y.mean(axis=0), **tight)
    np.testing.assert_allclose(moments.scatter, second(y, y), **tight)
    if z is None:
        assert moments.compressed_mean is moments.compressed_scatter is moments.cross is None
    else:
        np.testing.assert_allclose(moments.compressed_mean, centred * z.mean(axis=0), **tight)
        np.testing.assert_allclose(moments.compressed_scatter, second(z, z), **tight)
        np.testing.assert_allclose(moments.cross, second(z, y), **tight)


class TestGather:
    @pytest.mark.parametrize("batch_size", [1, 8, 23, 100])
    def test_of_a_sequential_model_whatever_the_batches(self, make, batch_size):
        model, kernels = make(sequential())
        x = draw(23, 6)  # The last batch is smaller.
        gathered = gather(Network(model), kernels, Calibration({"x": x}, batch_size))
        for name, centred in {"late": True, "early": False, "middle": True}.items():
            y = outputs_of(kernels[name], inputs_of(model, model.get_layer(name), x))
            assert_moments(gathered[name], y, centred=centred)

    def test_comes_in_the_order_of_the_calls(self, make):
        model, kernels = make(sequential())
        gathered = gather(Network(model), kernels, Calibration({"x": draw(5, 6)}, 2))
        assert list(gathered) == ["late", "early", "middle"]

    def test_of_nested_models(self, make):
        body = keras.Sequential(
            [keras.Input((6,)), layers.Dense(4, activation="relu", name="inner")], name="body"
        )
        inputs = keras.Input((6,), name="x")
        model, kernels = make(keras.Model(inputs, layers.Dense(2, name="outer")(body(inputs))))
        x = draw(9, 6)
        gathered = gather(Network(model), kernels, Calibration({"x": x}, 4))
        assert_moments(gathered["body/inner"], outputs_of(kernels["body/inner"], x))
        hidden = np.asarray(body(x))
        assert_moments(gathered["outer"], outputs_of(kernels["outer"], hidden))

    def test_all_calls_of_a_shared_layer_count(self, make):
        left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
        shared = layers.Dense(4, name="shared")
        model, kernels = make(
            keras.Model([left, right], layers.Add()([shared(left), shared(right)]))
        )
        a, b = draw(9, 6, seed=1), draw(9, 6, seed=2)
        gathered = gather(Network(model), kernels, Calibration({"left": a, "right": b}, 4))
        assert_moments(gathered["shared"], outputs_of(kernels["shared"], np.concatenate([a, b])))

    def test_two_inputs_are_told_apart_by_name(self, make):
        first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
        both = [layers.Dense(4, name="of_first")(first), layers.Dense(4, name="of_second")(second)]
        model, kernels = make(keras.Model([first, second], layers.Add()(both)))
        a, b = draw(9, 6, seed=1), draw(9, 6, seed=2)
        gathered = gather(Network(model), kernels, Calibration({"second": b, "first": a}, 4))
        assert_moments(gathered["of_first"], outputs_of(kernels["of_first"], a))
        assert_moments(gathered["of_second"], outputs_of(kernels["of_second"], b))

    def test_every_position_of_a_sequence_is_a_row(self, make):
        model, kernels = make(
            keras.Sequential([keras.Input((5, 6), name="x"), layers.Dense(4, name="tokens")])
        )
        x = draw(7, 5, 6)
        gathered = gather(Network(model), kernels, Calibration({"x": x}, 4))
        assert_moments(gathered["tokens"], outputs_of(kernels["tokens"], x))

    def test_groups_of_a_convolution_are_kept_apart(self, make):
        conv = layers.Conv1D(6, 2, groups=2, name="conv")
        model, kernels = make(keras.Sequential([keras.Input((5, 4), name="x"), conv]))
        x = draw(7, 5, 4)
        gathered = gather(Network(model), kernels, Calibration({"x": x}, 3))
        y = (conv(x).numpy() - conv.bias.numpy()).reshape(-1, 2, 3)
        assert_moments(gathered["conv"], y)

    def test_a_model_of_a_fixed_batch_size(self, make):
        model, kernels = make(
            keras.Sequential([keras.Input(batch_shape=(4, 6), name="x"), layers.Dense(3, name="y")])
        )
        x = draw(12, 6)
        assert_moments(
            gather(Network(model), kernels, Calibration({"x": x}, 4))["y"],
            outputs_of(kernels["y"], x),
        )

    def test_half_precision_is_summed_up_in_single(self, make):
        model, kernels = make(
            keras.Sequential(
                [keras.Input((6,), name="x"), layers.Dense(4, dtype="mixed_float16", name="y")]
            )
        )
        x = draw(3000, 6)
        gathered = gather(Network(model), kernels, Calibration({"x": x}, 1500))
        y = outputs_of(kernels["y"], x)
        np.testing.assert_allclose(
            gathered["y"].scatter[0], np.cov(y[:, 0].T), rtol=0.01, atol=0.01
        )

    def test_kernels_with_too_many_outputs_are_left_out(self, make, monkeypatch):
        monkeypatch.setattr(statistics, "MAX_OUTPUTS", 4)
        model, kernels = make(sequential())
        calibration = Calibration({"x": draw(5, 6)}, 5)
        assert list(gather(Network(model), kernels, calibration)) == ["early", "middle"]

    def test_tells_of_every_batch(self, make):
        model, kernels = make(sequential())
        calls = []
        calibration = Calibration({"x": draw(5, 6)}, 2)
        gather(Network(model), kernels, calibration, advance=lambda: calls.append("gather"))
        assert calls == ["gather"] * 3
        assert calibration.batch_count == 3


def classifier(activation):
    return keras.Sequential(
        [keras.Input((6,), name="x"), layers.Dense(3, activation=activation, name="y")]
    )


def gather_fishers(*args, seed=0, **options):
    return {name: m.fisher for name, m in gather(*args, seed=seed, **options).items()}


class TestFishers:
    """One layer, of which the gradient is known; thousands of samples stand for all labels."""

    X = draw(20_000, 6)

    def gather(self, model, kernels, **options):
        return gather_fishers(Network(model), kernels, Calibration({"x": self.X}, 5000, **options))

    @pytest.mark.parametrize("activation", ["softmax", "linear"])
    def test_of_a_softmax_regression_is_the_covariance_of_the_labels(self, make, activation):
        """The mean of diag(p) - p pt, whether the model returns p or its logits."""
        model, kernels = make(classifier(activation))
        actual = self.gather(model, kernels, tasks={"y": Task(3)})["y"].matrix
        p = keras.ops.softmax(model(self.X)).numpy() if activation == "linear" else model(self.X)
        p = np.asarray(p)
        expected = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
        np.testing.assert_allclose(actual[0], expected, atol=0.01)

    def test_of_a_logistic_regression(self, make):
        """Outputs are independent: p (1 - p) each."""
        model, kernels = make(classifier("sigmoid"))
        p = model(self.X).numpy()
        expected = np.diag((p * (1 - p)).mean(axis=0))
        np.testing.assert_allclose(self.gather(model, kernels)["y"].matrix[0], expected, atol=0.01)

    def test_of_a_regression_all_outputs_count_alike(self, make):
        model, kernels = make(classifier("linear"))
        actual = self.gather(model, kernels)["y"].matrix
        np.testing.assert_allclose(actual[0], np.eye(3), atol=0.05)

    def test_of_a_hidden_layer_is_pulled_back(self, make):
        """Through tanh and the next kernel, from squared errors."""
        model, kernels = make(
            keras.Sequential(
                [
                    keras.Input((6,), name="x"),
                    layers.Dense(4, activation="tanh", name="hidden"),
                    layers.Dense(2, name="y"),
                ]
            )
        )
        hidden, last = (kernels[name].layer for name in ("hidden", "y"))
        slope = 1 - hidden(self.X).numpy() ** 2
        jacobian = slope[:, :, None] * last.kernel.numpy()
        expected = np.einsum("rhi,rki->hk", jacobian, jacobian) / len(self.X)
        actual = self.gather(model, kernels)["hidden"].matrix
        np.testing.assert_allclose(actual[0], expected, rtol=0.05, atol=0.05 * expected.max())

    def test_positions_of_a_sample_are_summed_up(self, make):
        model, kernels = make(
            keras.Sequential([keras.Input((5, 6), name="x"), layers.Dense(3, name="tokens")])
        )
        calibration = Calibration({"x": draw(4000, 5, 6)}, 1000)
        actual = gather_fishers(Network(model), kernels, calibration)["tokens"].matrix
        np.testing.assert_allclose(actual[0], 5 * np.eye(3), atol=0.25)

    def test_a_layer_that_the_loss_does_not_depend_on_has_zeros(self, make):
        inputs = keras.Input((6,), name="x")
        unused = layers.Dense(2, name="unused")(inputs) * 0.0
        model, kernels = make(
            keras.Model(inputs, layers.Dense(2, name="y")(inputs) + unused, name="m")
        )
        actual = gather_fishers(Network(model), kernels, Calibration({"x": draw(9, 6)}, 9))
        np.testing.assert_array_equal(actual["unused"].matrix, 0)

    def test_the_seed_draws_the_labels(self, make):
        model, kernels = make(classifier("softmax"))
        calibration = Calibration({"x": draw(50, 6)}, 20)

        def matrix(seed):
            return gather_fishers(Network(model), kernels, calibration, seed=seed)["y"].matrix

        np.testing.assert_array_equal(matrix(0), matrix(0))
        assert np.abs(matrix(0) - matrix(1)).max() > 1e-4


class TestCascade:
    """Stages against a copy that is compressed indeed."""

    def stages(self, model, *names):
        found = {c.name: c for c in candidates(Network(model))}
        return [[found[name]] for name in names]

    @pytest.fixture
    def chain(self, make):
        model, kernels = make(sequential())
        heads = {name: layers.Dense(2, use_bias=False) for name in ("late", "early")}
        tails = {"late": layers.Dense(5, activation="tanh"), "early": layers.Dense(4)}
        copy = keras.Sequential([keras.Input((6,)), heads["late"], tails["late"]])
        copy.add(heads["early"])
        copy.add(tails["early"])
        copy.add(layers.Dense(3))
        replaced = [
            (model.get_layer(name), Replacement((heads[name], tails[name]), {})) for name in heads
        ]
        return model, kernels, copy, replaced

    @pytest.mark.parametrize("kept", [True, False])
    @pytest.mark.parametrize("limit", [2**29, 0])
    def test_compares_both_on_the_same_samples(self, chain, monkeypatch, kept, limit):
        model, kernels, copy, replaced = chain
        monkeypatch.setattr(steps, "MAX_KEPT", limit)
        x, outputs = draw(23, 6), []
        network, calibration = Network(model), Calibration({"x": x}, 8)
        moments = gather(network, kernels, calibration, kept=outputs)
        assert len(outputs) == 3
        cascade = Cascade(network, calibration, moments, outputs if kept else ())
        stages = self.stages(model, "early", "middle")
        for number, name in enumerate(("early", "middle")):
            gathered = cascade.gather(stages[number:], replaced[: number + 1])
            assert list(gathered) == [name]
            y = outputs_of(kernels[name], inputs_of(model, model.get_layer(name), x))
            inputs = keras.Model(copy.inputs, copy.layers[2 * number + 1].output)([x])
            z = outputs_of(kernels[name], np.asarray(inputs))
            assert_moments(gathered[name], y, z, centred=name == "middle")

    def test_layers_of_nested_models_and_shared_ones(self, make):
        shared = layers.Dense(6, activation="tanh", name="shared")
        body = keras.Sequential(
            [keras.Input((6,)), shared, layers.Dense(6, name="inner")], name="body"
        )
        inputs = keras.Input((6,), name="x")
        model, kernels = make(
            keras.Model(inputs, layers.Dense(2, name="outer")(shared(body(shared(inputs)))))
        )
        head, tail = layers.Dense(2, use_bias=False), layers.Dense(6, activation="tanh")
        x, network = draw(9, 6), Network(model)
        calibration = Calibration({"x": x}, 4)
        cascade = Cascade(network, calibration, gather(network, kernels, calibration))
        stages = self.stages(model, "body/inner", "outer")
        replaced = [(shared, Replacement((head, tail), {}))]
        inner = cascade.gather(stages, replaced)["body/inner"]
        outer = cascade.gather(stages[1:], replaced)["outer"]
        last = model.get_layer("body").get_layer("inner")
        y, z = shared(shared(x)), tail(head(tail(head(x))))
        y, z = np.asarray(y), np.asarray(z)
        assert_moments(
            inner, outputs_of(kernels["body/inner"], y), outputs_of(kernels["body/inner"], z)
        )
        y, z = np.asarray(shared(last(y))), np.asarray(tail(head(last(z))))
        assert_moments(outer, outputs_of(kernels["outer"], y), outputs_of(kernels["outer"], z))


class Fragile(layers.Layer):
    """A layer that can be broken once it is built into a model."""

    broken = False

    def call(self, inputs):
        if self.broken:
            raise RuntimeError("broken")
        return inputs


@pytest.mark.parametrize("function", [gather, gather_fishers], ids=lambda f: f.__name__)
@pytest.mark.parametrize("fails", [False, True])
def test_layers_are_left_as_they_were(make, function, fails):
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(5, activation="tanh", name="hidden")(inputs)
    x = Fragile(name="fragile")(x)
    model, kernels = make(keras.Model(inputs, layers.Dense(2, name="y")(x)))
    before = {name: dict(vars(layer)) for name, layer in walk(model)}
    calibration = Calibration({"x": draw(5, 6)}, 5)
    if fails:
        model.get_layer("fragile").broken = True
        with pytest.raises(RuntimeError, match="broken"):
            function(Network(model), kernels, calibration)
        del model.get_layer("fragile").broken
    else:
        function(Network(model), kernels, calibration)
    for name, layer in walk(model):
        after = vars(layer)
        assert after.keys() == before[name].keys()
        for key in ("call", "activation"):
            assert after.get(key) is before[name].get(key)


@pytest.mark.parametrize("choices", [{"max_params": 0.5}, {"channels": 0.5, "rank": "none"}])
@pytest.mark.parametrize(
    ("factor", "told"), [(1e38, "NaN or infinite"), (1e25, "whose squares are too large")]
)
def test_values_that_are_not_finite_are_told_with_their_layer(factor, told, choices):
    given = keras.Input((6,))
    x = keras.layers.Dense(16, name="first")(given)
    model = keras.Model(given, keras.layers.Dense(3, name="last")(x), name="huge")
    first, last = model.layers[1:]
    first.kernel.assign(factor * first.kernel)
    last.kernel.assign(last.kernel / factor)
    x = 100 * np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    with pytest.raises(ModelError, match=rf"'huge' computes values .* {told}, first in layer"):
        exporter.compress(model, data={"x_train": x}, scale="none", **choices)
