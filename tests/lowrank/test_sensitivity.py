import keras
import numpy as np
import pytest

from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.costs import PARAMS
from exporter.lowrank.sensitivity import divergence, measure_sensitivities


def softmax(values):
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_divergence_of_distributions_is_that_of_kullback_and_leibler():
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    q = np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert divergence({"y": p}, {"y": q}, frozenset()) == pytest.approx(expected)
    assert divergence({"y": p}, {"y": p}, frozenset()) == 0


def test_logits_diverge_as_their_softmax_does():
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(2, 30, 5))
    of_logits = divergence({"y": y}, {"y": z}, frozenset({"y"}))
    of_softmax = divergence({"y": softmax(y)}, {"y": softmax(z)}, frozenset())
    assert of_logits == pytest.approx(of_softmax)


def test_other_outputs_diverge_by_the_error_over_the_variance():
    y = np.random.default_rng(0).normal(2, 3, size=(500, 4))
    found = divergence({"y": y}, {"y": y + 0.3}, frozenset())
    assert found == pytest.approx(0.5 * 0.09 / y.var())


@pytest.fixture(scope="module")
def two_branches():
    """The output depends on the branch ``loud`` a hundred times as much as on ``quiet``."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,), name="x")
    loud = keras.layers.Dense(16, name="loud")(inputs)
    quiet = keras.layers.Dense(16, name="quiet")(inputs)
    outputs = keras.layers.Add(name="y")([loud, keras.layers.Rescaling(0.01)(quiet)])
    return keras.Model(inputs, outputs)


def calibration(samples=256):
    x = np.random.default_rng(0).normal(size=(samples, 16)).astype("float32")
    return Calibration({"x": x}, 64)


def test_what_matters_more_is_more_sensitive(two_branches):
    engine = Engine(Network(two_branches), calibration())
    found = measure_sensitivities(engine)
    assert set(found) == {"loud", "quiet"}
    assert found["loud"].loss(0.5) > 1000 * found["quiet"].loss(0.5)


def test_prediction_meets_the_measurement(two_branches):
    """A linear model: the squared error of the output is that of the layer."""
    engine = Engine(Network(two_branches), calibration())
    found = measure_sensitivities(engine)["loud"]
    assert found.exponent == pytest.approx(1, abs=0.1)


def test_model_is_as_it_was_afterwards(two_branches):
    before = two_branches.predict(np.ones((2, 16)), verbose=0)
    measure_sensitivities(Engine(Network(two_branches), calibration()))
    assert "call" not in vars(two_branches.get_layer("loud"))
    np.testing.assert_array_equal(two_branches.predict(np.ones((2, 16)), verbose=0), before)


def test_budgets_are_used_where_nothing_shows():
    """As of a network of random weights, whose outputs do not depend on its inputs."""
    inputs = keras.Input((16,), name="x")
    hidden = keras.layers.Dense(32, name="hidden")(inputs)
    silent = keras.layers.Rescaling(0.0)(keras.layers.Dense(16, name="last")(hidden))
    engine = Engine(Network(keras.Model(inputs, silent)), calibration())
    found = measure_sensitivities(engine)
    assert found["hidden"].scale > 0
    planner = Planner(engine)
    limit = planner.whole() * 3 // 4
    plan = planner.within(PARAMS, limit)
    assert sum(layer.params_after for layer in plan.layers) > 0.85 * limit


def test_nothing_is_measured_without_data(two_branches):
    assert measure_sensitivities(Engine(Network(two_branches))) == {}
