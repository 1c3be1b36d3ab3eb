import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.errors import ModelError
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement, rewrite
from exporter.graph.walk import walk
from exporter.lowrank.candidates import candidates
from exporter.lowrank.engine import build_replacements


def full_rank_chains(model):
    chosen = [candidate for candidate in candidates(Network(model)) if candidate.kernel is not None]
    truncations = {c.name: c.kernel.truncate(c.kernel.full_rank) for c in chosen}
    return build_replacements(chosen, truncations)


class Forgetful(layers.Layer):
    """A layer whose configuration lacks an argument of its constructor."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        return inputs * self.size

    def get_config(self):
        return {"name": self.name}


# Layers with weights, states or calls of their own, as functions of an input.


def adapted_normalization(x):
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, size=(100, 8)).astype("float32"))
    return layers.Dense(6)(normalization(x))


def masked_sequence(x):
    tokens = layers.Masking(-9.0)(layers.Reshape((4, 2))(x))
    return layers.LSTM(5)(layers.Dense(6)(tokens))


def embedding(x):
    indices = keras.ops.cast(keras.ops.abs(keras.ops.tanh(x)) * 9.9, "int32")
    tokens = layers.Embedding(10, 6, mask_zero=True)(indices)
    return layers.GlobalAveragePooling1D()(layers.Dense(5)(tokens))


def attention(x):
    tokens = layers.Dense(6)(layers.Reshape((4, 2))(x))
    mixed = layers.MultiHeadAttention(2, 3)(tokens, tokens, use_causal_mask=True)
    return layers.Flatten()(mixed)


def wrappers(x):
    tokens = layers.Reshape((4, 2))(x)
    tokens = layers.TimeDistributed(layers.Dense(3))(tokens)
    return layers.Dense(4)(layers.Bidirectional(layers.GRU(3))(tokens))


def operators(x):
    return keras.ops.tanh(layers.Dense(8)(x) * 2 + x[:, ::-1])


def keyword_argument(x):
    return layers.Dense(6)(inputs=x)


STATEFUL = [
    adapted_normalization,
    masked_sequence,
    embedding,
    attention,
    wrappers,
    operators,
    keyword_argument,
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("body", STATEFUL, ids=lambda body: body.__name__)
def test_full_rank_factors_between_layers_of_many_kinds_change_nothing(body, randomize):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, body(inputs))
    randomize(model, 0)
    batch = np.random.default_rng(1).normal(size=(5, 8)).astype("float32")
    batch[:, 4:] = -9.0  # What the mask, where there is one, leaves out.
    chains = full_rank_chains(model)
    assert chains
    copy = rewrite(model, chains)
    np.testing.assert_allclose(copy(batch), model(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.one_in(3)
def test_without_chains_the_copy_is_the_same_model(zoo_model, samples, predict):
    copy = rewrite(zoo_model, {})
    assert copy.name == zoo_model.name
    assert [name for name, _ in walk(copy)] == [name for name, _ in walk(zoo_model)]
    assert not {id(v) for v in copy.variables} & {id(v) for v in zoo_model.variables}
    inputs = samples(zoo_model, 4)
    expected, actual = predict(zoo_model, inputs), predict(copy, inputs)
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


class TestChains:
    def test_a_shared_layer_gets_one_pair_of_factors(self, build):
        model = build("shared_dense")
        copy = rewrite(model, full_rank_chains(model))
        names = [layer.name for layer in copy.layers]
        assert names.count("tower_u") == names.count("tower") == 1
        # Called once for each of the two inputs.
        assert len(copy.get_layer("tower_u")._inbound_nodes) == 2

    def test_a_shared_model_gets_one_pair_of_factors(self, build):
        model = build("nested_functional")
        copy = rewrite(model, full_rank_chains(model))
        assert [name for name, _ in walk(copy) if name.startswith("inner/mix")] == [
            "inner/mix_u",
            "inner/mix",
        ]

    def test_nested_models_stay_nested(self, build):
        for name in ("nested_sequential", "nested_functional"):
            model = build(name)
            copy = rewrite(model, full_rank_chains(model))
            inner = {type(x) for x in model.layers if isinstance(x, keras.Model)}
            assert {type(x) for x in copy.layers if isinstance(x, keras.Model)} == inner

    def test_the_kind_of_the_model_is_kept(self, zoo_model):
        assert type(rewrite(zoo_model, full_rank_chains(zoo_model))) is type(zoo_model)

    def test_frozen_layers_stay_frozen(self, build):
        model = build("frozen_layer")
        copy = rewrite(model, full_rank_chains(model))
        trainable = {layer.name: layer.trainable for layer in copy.layers}
        assert trainable == {"frozen_u": False, "frozen": False, "head_u": True, "head": True}

    def test_frozen_models_stay_frozen(self, build):
        model = build("nested_sequential")
        model.get_layer("body").trainable = False
        copy = rewrite(model, full_rank_chains(model))
        assert not copy.get_layer("body").trainable_variables
        assert len(copy.trainable_variables) == 3  # Two kernels and the bias of the head.

    @pytest.mark.parametrize("name", ["sequential_mlp", "residual"])
    def test_a_loss_that_cannot_be_copied_does_not_matter(self, build, name):
        model = build(name)
        model.compile(loss=lambda y, p: keras.ops.mean((y - p) ** 2))
        copy = rewrite(model, full_rank_chains(model))
        assert not copy.compiled
        assert model.compiled

    def test_a_factor_gives_way_to_a_layer_of_its_name(self, samples, predict):
        """The factor of layer ``a`` would be called ``a_u``, like that of a former compression."""
        inputs = keras.Input((8,))
        output = layers.Dense(6, name="a")(layers.Dense(8, name="a_u")(inputs))
        model = keras.Model(inputs, output)
        copy = rewrite(model, full_rank_chains(model))
        assert [candidate.name for candidate in candidates(Network(copy))] == [
            "a_u_u",
            "a_u",
            "a_u_1",
            "a",
        ]
        batch = samples(model, 3)
        np.testing.assert_allclose(
            predict(copy, batch)["a"], predict(model, batch)["a"], rtol=1e-5, atol=1e-5
        )


class Scaled(layers.Layer):
    """A layer that refers to itself by a method and a function, and shares a variable."""

    def __init__(self, other):
        super().__init__()
        self.other = other
        self.parts = {"pair": (layers.Dense(4), [layers.Dense(4)])}
        self.scaled = lambda x: x * self.scale
        self.again = tf.function(self.apply)

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        first, (second,) = self.parts["pair"]
        first.build(shape)
        second.build(shape)

    def apply(self, inputs):
        first, (second,) = self.parts["pair"]
        return self.scaled(first(inputs) + second(inputs) @ self.other.kernel)

    def call(self, inputs):
        return self.again(inputs)


class TestCopiesWithoutConfiguration:
    def test_arguments_that_get_config_leaves_out_are_kept(self):
        model = keras.Sequential([keras.Input((4,)), Forgetful(2), layers.Dense(3)], name="outer")
        batch = np.ones((2, 4), "float32")
        np.testing.assert_array_equal(rewrite(model, {})(batch), model(batch))

    def test_lambdas_are_kept(self):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6, activation=lambda x: keras.ops.minimum(x, 0.5)),
                layers.Lambda(lambda x: x * 2),
                layers.Dense(3),
            ]
        )
        batch = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        copy = rewrite(model, full_rank_chains(model))
        np.testing.assert_allclose(copy(batch), model(batch), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", [None, "float64"])
    def test_all_parts_of_a_layer_are_its_own(self, dtype):
        shared = layers.Dense(4, name="shared")
        inputs = keras.Input((4,))
        model = keras.Model(inputs, Scaled(shared)(shared(inputs)))
        copy = rewrite(model, {}, dtype=dtype)
        assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
        assert [v.path for v in copy.variables] == [v.path for v in model.variables]
        assert {v.dtype for v in copy.variables} == {dtype or "float32"}
        batch = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        before = model(batch).numpy()
        np.testing.assert_allclose(copy(batch), before, rtol=1e-5, atol=1e-5)
        for variable in copy.variables:
            variable.assign(variable * 0)
        assert not copy(batch).numpy().any()
        np.testing.assert_array_equal(model(batch), before)

    def test_a_layer_that_cannot_be_called_again(self):
        class Once(layers.Layer):
            def call(self, inputs):
                if getattr(self, "done", False):
                    raise ValueError("once only")
                self.done = True
                return inputs

        model = keras.Sequential([keras.Input((4,)), Once()], name="outer")
        with pytest.raises(ModelError, match=r"'outer' cannot be copied.*of type Once"):
            rewrite(model, {})


class TestCopiesWithoutTraces:
    """Copies of Keras' own layers know their outputs from the original."""

    @pytest.fixture
    def computed(self, monkeypatch):
        names, compute = [], layers.Layer.compute_output_spec

        @functools.wraps(compute)
        def note(layer, *args, **kwargs):
            names.append(layer.name)
            return compute(layer, *args, **kwargs)

        monkeypatch.setattr(layers.Layer, "compute_output_spec", note)
        return names

    @pytest.mark.parametrize("name", ["nested_functional", "functional_two_inputs_two_outputs"])
    def test_outputs_are_not_computed_again(self, build, samples, computed, name):
        model = build(name)
        inputs = samples(model, 3)
        computed.clear()
        copy = rewrite(model, {})
        assert not computed
        assert [x.shape for x in copy.outputs] == [x.shape for x in model.outputs]
        expected = Network(model).runner(eager=True)(inputs)
        for key, output in Network(copy).runner(eager=True)(inputs).items():
            np.testing.assert_array_equal(output, expected[key])

    def test_in_another_type_they_are(self, build, computed):
        model = build("nested_functional")
        computed.clear()
        rewrite(model, {}, dtype="float64")
        assert computed

    def test_where_shapes_change_outputs_are_computed(self, computed):
        model = keras.Sequential(
            [keras.Input((2, 4)), layers.Reshape((2, 4), name="kept"), layers.Dense(3, name="y")]
        )
        computed.clear()
        padding = Replacement((layers.ZeroPadding1D(1, name="kept"),), {})
        assert rewrite(model, {"kept": padding}).outputs[0].shape == (None, 4, 3)
        assert computed == ["kept", "y"]  # The new layer, and what its shape changes.


def test_attributes_that_begin_like_the_records_of_tensorflow_are_copied():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self._self_attention = keras.layers.Dense(3)

        def call(self, inputs):
            return self._self_attention(inputs)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Block()(inputs))
    values = np.ones((2, 4), "float32")
    copy = rewrite(model, {})
    np.testing.assert_array_equal(copy(values), model(values))
    kept = copy.layers[-1]._self_attention
    assert kept is not model.layers[-1]._self_attention
