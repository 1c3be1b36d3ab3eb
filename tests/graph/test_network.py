import keras
import numpy as np
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.layers import input_shape, output_shape
from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates


@pytest.fixture
def network(build):
    return Network(build("nested_functional"))


def test_a_network_is_wrapped_once(network):
    assert Network.of(network) is network
    assert Network.of(network.model).model is network.model


@pytest.mark.parametrize("name", ["signature", "layers", "links", "macs"])
def test_structure_is_read_once(network, name):
    assert getattr(network, name) is getattr(network, name)


def test_calls_of_inner_layers_are_recorded_when_they_are_asked_for():
    class Owner(layers.Layer):
        calls = 0

        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(3, name="inner")

        def call(self, inputs):
            Owner.calls += 1
            return self.inner(inputs)

    inputs = keras.Input((4,), name="x")
    network = Network(keras.Model(inputs, Owner()(inputs)))
    before = Owner.calls
    inner = next(layer for path, layer in network.layers.items() if path.endswith("/inner"))
    assert Owner.calls == before
    assert input_shape(inner) == (None, 4)
    assert output_shape(inner) == (None, 3)
    assert Owner.calls == before + 1


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


class Two(keras.Model):
    def __init__(self):
        super().__init__(name="two")
        self.words, self.mix = layers.Embedding(9, 4), layers.Dense(3)

    def call(self, inputs):
        return {"mixed": self.mix(self.words(inputs["word"])[:, 0] * inputs["weight"])}


def test_a_subclassed_model_is_wrapped_by_the_shapes_that_it_was_built_with():
    model = Two()
    batch = {"word": np.array([[3], [8]]), "weight": np.ones((2, 4), "float32")}
    expected = model(batch)["mixed"]
    model.compile(loss="mse")
    network = Network(model)
    assert network.compiled_loss == "mse"  # The Functional model has none.
    shapes = {info.name: (info.shape, info.dtype) for info in network.inputs}
    assert shapes == {"word": ((None, 1), "int32"), "weight": ((None, 4), "float32")}
    assert [info.name for info in network.outputs] == ["mixed"]
    np.testing.assert_array_equal(network.copy().runner()(batch)["mixed"], expected)


class Uses(layers.Layer):
    """Calls or reads its layers in ways that leave some of them as they are."""

    def __init__(self):
        super().__init__(name="uses")
        names = ["called", "unused", "read", "constant", "looped"]
        self.parts = {name: layers.Dense(4, name=name) for name in names}
        self.first, self.tied = layers.Embedding(5, 4, name="first"), layers.Dense(4, name="tied")

    def build(self, shape):
        for part in (*self.parts.values(), self.tied):
            part.build(shape)

    def call(self, inputs):
        x = self.parts["called"](inputs) @ self.parts["read"].kernel
        x += self.parts["constant"](keras.ops.ones((1, 4)))
        x = keras.ops.map(self.parts["looped"], x[:, None])[:, 0]
        return x + self.first(keras.ops.cast(inputs[:, 0], "int32"))


def test_layers_that_cannot_be_replaced_inside_their_owner_say_why():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Uses()(inputs))
    found = {c.name.removeprefix("uses/"): c.note for c in candidates(Network(model))}
    assert found == {
        "called": "",
        "unused": "is not called when the model predicts",
        "read": "its weights are read by another layer",
        "constant": "has the same outputs for all samples, which converters compute beforehand",
        "looped": "is called within a loop, or a function of its own",
        "first": "",
        "tied": "is not called when the model predicts",
    }


def test_tied_embeddings_stay_as_they_are():
    class Tied(layers.Layer):
        def __init__(self, embedding):
            super().__init__()
            self.embedding = embedding

        def call(self, inputs):
            return inputs @ keras.ops.transpose(self.embedding.embeddings)

    inputs, embedding = keras.Input((3,), dtype="int32"), layers.Embedding(20, 8)
    hidden = layers.Dense(8)(embedding(inputs))
    model = keras.Model(inputs, Tied(embedding)(hidden))
    notes = {c.kind: c.note for c in candidates(Network(model))}
    assert notes == {"Embedding": "its weights are read by another layer", "Dense": ""}
    copy = Network(model).copy().model
    assert len(copy.weights) == len(model.weights) == 3
