import keras
import numpy as np
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.network import Network
from exporter.graph.walk import links, own_weights, walk


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class Owner(layers.Layer):
    def __init__(self):
        super().__init__(name="owner")
        self.same = {"names": [layers.Dense(6, name="part"), layers.Dense(6, name="part")]}
        both = [layers.Dense(5, name="first"), layers.Dense(6, name="second")]
        self.inner = keras.Sequential(both, name="inner")

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, inputs):
        first, second = self.same["names"]
        return self.inner(second(first(inputs))) * self.scale


class TestWalk:
    def test_names_nested_layers_by_their_path(self, build):
        names = [name for name, _ in walk(build("nested_sequential"))]
        assert names == ["body/first", "body/second", "head"]

    def test_enters_custom_layers_wrappers_and_graphs_inside_them(self):
        inputs = keras.Input((4, 6))
        wrapped = layers.LSTM(3, return_sequences=True, name="lstm")
        x = Owner()(layers.Bidirectional(wrapped, name="both")(inputs))
        found = dict(walk(keras.Model(inputs, x)))
        names = [path for path, layer in found.items() if own_weights(layer)]
        assert names == [
            "both/forward_lstm",
            "both/backward_lstm",
            "owner",
            "owner/part",
            "owner/part_1",
            "owner/inner/first",
            "owner/inner/second",
        ]
        assert [weight.name for weight in own_weights(found["owner"])] == ["scale"]

    def test_finds_links_in_graphs_inside_custom_layers(self):
        inputs = keras.Input((4, 6))
        pairs = links(keras.Model(inputs, Owner()(inputs)))
        assert ("owner/inner/", "first", "second") in [(p, a.name, b.name) for p, a, b in pairs]

    def test_yields_shared_layers_once(self, build):
        shared = [name for name, _ in walk(build("shared_dense"))]
        assert shared.count("tower") == 1
        nested = [name for name, _ in walk(build("nested_functional"))]
        assert nested.count("inner/mix") == 1


class TestRefusals:
    @pytest.mark.parametrize("thing", ["a path", None, 3])
    def test_what_is_no_model(self, thing):
        with pytest.raises(ModelError, match=f"Received: {type(thing).__name__}"):
            Network(thing)

    def test_a_subclassed_model_that_was_never_called(self):
        with pytest.raises(ModelError, match=r"'subclassed.*has not been built.*Call it"):
            Network(Subclassed())

    def test_a_subclassed_model_that_cannot_be_traced(self):
        class Eager(Subclassed):
            def call(self, inputs):
                return super().call(inputs if inputs.numpy().any() else -inputs)

        model = Eager()
        model(np.ones((2, 4)))
        with pytest.raises(ModelError, match=r"'eager.*cannot be called.*Give keras\.Model"):
            Network(model)

    def test_a_model_that_is_not_built(self):
        model = keras.Sequential([layers.Dense(3)], name="empty")
        with pytest.raises(ModelError, match=r"'empty' has not been built.*keras\.Input"):
            Network(model)
