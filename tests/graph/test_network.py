import keras
import numpy as np
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.network import Network


@pytest.fixture
def network(build):
    return Network(build("nested_functional"))


def test_a_network_is_wrapped_once(network):
    assert Network.of(network) is network
    assert Network.of(network.model).model is network.model


@pytest.mark.parametrize("name", ["signature", "layers", "links", "macs"])
def test_structure_is_read_once(network, name):
    assert getattr(network, name) is getattr(network, name)


def test_weights_are_those_of_now(network, samples):
    inputs = samples(network.model, 3)
    before, runner = network.runner(eager=True)(inputs), network.runner()
    for weight in network.model.weights:
        weight.assign(weight + 1.0)
    for name, expected in network.runner(eager=True)(inputs).items():
        assert not np.allclose(before[name], expected)
        np.testing.assert_allclose(runner(inputs)[name], expected, rtol=1e-4, atol=1e-4)


def test_a_copy_has_weights_of_its_own(network):
    copy = network.copy()
    assert list(copy.layers) == list(network.layers)
    for mine, original in zip(copy.model.weights, network.model.weights, strict=True):
        np.testing.assert_array_equal(mine, original)
        assert mine is not original


def test_a_batch_is_given_where_it_is_free():
    free, fixed = (keras.Input(batch_shape=(size, 4)) for size in (None, 2))
    (info,), (output,) = Network(keras.Model(free, layers.Dense(3)(free))).signature.interface(5)
    assert (info.shape, output.shape) == ((5, 4), (5, 3))
    network = Network(keras.Model(fixed, layers.Dense(3)(fixed)))
    assert network.fixed_batch == 2
    assert network.signature.interface(5) == (network.inputs, network.outputs)


def test_sparse_inputs_have_no_signature():
    inputs = keras.Input((4,), sparse=True)
    network = Network(keras.Model(inputs, layers.Dense(3)(inputs)))
    assert len(network.layers) == 2
    with pytest.raises(ModelError, match="Give the model dense inputs"):
        _ = network.inputs
