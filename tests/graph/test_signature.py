import keras
import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.graph.signature import Signature


def names(infos):
    return [info.name for info in infos]


class TestSignature:
    def test_names_are_those_of_input_and_output_layers_in_order(self, build):
        signature = Signature(build("functional_two_inputs_two_outputs"))
        assert names(signature.inputs) == ["wide", "deep"]
        assert names(signature.outputs) == ["kind", "amount"]
        assert [info.shape for info in signature.inputs] == [(None, 24), (None, 18)]
        assert {info.dtype for info in signature.outputs} == {"float32"}

    def test_outputs_of_a_dictionary_are_named_by_its_keys(self, build):
        signature = Signature(build("dict_inputs_outputs"))
        assert names(signature.inputs) == ["item", "query"]
        assert names(signature.outputs) == ["click", "rating"]
        assert [info.shape for info in signature.outputs] == [(None, 2), (None, 1)]

    def test_an_input_that_is_an_output_too_has_two_names(self):
        inputs = keras.Input((4,), name="x")
        model = keras.Model(inputs, [inputs, keras.layers.Dense(2, name="y")(inputs)])
        assert names(Signature(model).outputs) == ["x_output", "y"]

    def test_bfloat16_is_refused_where_numpy_would_need_it(self):
        inputs = keras.Input((4,), name="x")
        model = keras.Model(inputs, keras.layers.Dense(2, name="y", dtype="bfloat16")(inputs))
        with pytest.raises(ModelError, match=r"'y' of bfloat16.*dtype='float32'"):
            Signature(model)

    def test_nested_dictionaries_are_named_by_their_path(self):
        inputs = keras.Input((4,), name="x")
        heads = {"a": {"b": keras.layers.Dense(2)(inputs)}, "c": keras.layers.Dense(3)(inputs)}
        assert names(Signature(keras.Model(inputs, heads)).outputs) == ["a_b", "c"]

    @pytest.mark.parametrize(
        ("name", "identifier"),
        [
            ("image", "image"),
            ("in-put.1", "in_put_1"),
            ("serving:0", "serving_0"),
            ("3d", "t3d"),
            ("_private", "t_private"),
            ("größe", "gr__e"),
            ("a b", "a_b"),
        ],
    )
    def test_names_become_identifiers(self, name, identifier):
        inputs = keras.Input((4,), name=name)
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        (info,) = Signature(model).inputs
        assert info.name == identifier
        assert info.name.isidentifier()

    def test_names_that_become_the_same_are_made_unique(self):
        inputs = [keras.Input((4,), name=name) for name in ("a.b", "a-b", "a_b")]
        model = keras.Model(inputs, keras.layers.Add()(inputs))
        assert names(Signature(model).inputs) == ["a_b", "a_b_1", "a_b_2"]

    def test_a_layer_that_gives_two_outputs_gives_them_two_names(self):
        inputs = keras.Input((4,), name="x")
        layer = keras.layers.Dense(2, name="y")
        model = keras.Model(inputs, [layer(inputs), layer(inputs * 2)])
        assert names(Signature(model).outputs) == ["y", "y_1"]

    def test_input_layers_are_translated(self):
        inputs = [keras.Input((4,), name=name) for name in ("a.b", "c")]
        signature = Signature(keras.Model(inputs, keras.layers.Add()(inputs)))
        assert signature.input_name("a.b") == "a_b"
        assert signature.input_name("c") == "c"
        assert signature.input_name("other") == "other"

    def test_dropout_and_statistics_are_those_of_inference(self, build, samples, predict):
        model = build("conv_batchnorm_dropout")
        inputs = samples(model, 4)
        before = [weight.copy() for weight in model.get_weights()]
        first, second = (predict(model, inputs)["probabilities"] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


def test_inputs_of_text_are_refused_by_name():
    city = keras.Input((1,), dtype="string", name="city")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="look")
    model = keras.Model(city, keras.layers.Dense(3)(lookup(city)))
    with pytest.raises(ModelError, match=r"Input 'city' takes text, for look; .*numbers alone"):
        Signature(model)
