import keras
import pytest
from keras import layers

from exporter.errors import ModelError
from exporter.graph.network import Network
from exporter.graph.walk import walk


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class TestWalk:
    def test_names_nested_layers_by_their_path(self, build):
        names = [name for name, _ in walk(build("nested_sequential"))]
        assert names == ["body/first", "body/second", "head"]

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

    def test_a_subclassed_model(self):
        with pytest.raises(
            ModelError, match=r"Received: the subclassed model Subclassed\. Rebuild"
        ):
            Network(Subclassed())

    def test_a_subclassed_model_inside(self):
        model = keras.Sequential([keras.Input((4,)), Subclassed()], name="outer")
        with pytest.raises(ModelError, match=r"nested model 'subclassed.*subclassed model Subcl"):
            Network(model)

    def test_a_model_that_is_not_built(self):
        model = keras.Sequential([layers.Dense(3)], name="empty")
        with pytest.raises(ModelError, match=r"'empty' has not been built.*keras\.Input"):
            Network(model)
