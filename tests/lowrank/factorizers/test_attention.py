import itertools

import keras
import numpy as np
import pytest

from exporter.graph.network import Network
from exporter.graph.rewrite import rewrite
from exporter.lowrank.candidates import candidates
from exporter.lowrank.factorizers import factorizer_for, reason_kept

NAMES = ("query", "key", "value", "output")


def self_attention(shape=(5, 8), call=None, **arguments):
    keras.utils.set_random_seed(0)
    x = keras.Input(shape, name="x")
    layer = keras.layers.MultiHeadAttention(
        2, 3, **{"name": "attention", "bias_initializer": "normal", **arguments}
    )
    return keras.Model([x], layer(x, x, **(call or {}))), layer


def cut(model, names=NAMES, *, merge=True):
    """Rewrites a model with some kernels of its layer ``attention`` cut at full rank."""
    layer = model.get_layer("attention")
    factorizer = factorizer_for(layer)
    parts = {
        kernel.name: kernel.truncate(kernel.full_rank, merge=merge)
        for kernel in factorizer.kernels(layer)
        if kernel.name in names
    }
    return rewrite(model, {"attention": factorizer.replace(layer, parts)})


def assert_same(copy, model, *inputs):
    pairs = zip(
        keras.tree.flatten(copy(list(inputs))),
        keras.tree.flatten(model(list(inputs))),
        strict=True,
    )
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "names", [names for size in (1, 2, 3) for names in itertools.combinations(NAMES, size)]
)
def test_each_projection_is_optional(names):
    model, layer = self_attention()
    copy = cut(model, names)
    assert_same(copy, model, X)
    factorizer = factorizer_for(layer)
    counted = sum(
        kernel.params(kernel.full_rank if kernel.name in names else None)
        for kernel in factorizer.kernels(layer)
    )
    assert copy.count_params() == counted


def test_candidates_are_the_projections():
    model, _ = self_attention()
    found = {c.name: c.kernel for c in candidates(Network(model))}
    assert list(found) == [f"attention/{name}" for name in NAMES]
    assert [(k.m, k.n, k.positions) for k in found.values()] == [(8, 6, 5)] * 3 + [(6, 8, 5)]


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
def test_the_last_layer_bears_the_name(merge):
    model, _ = self_attention()
    letters = ["u"] if merge else ["u", "s"]
    heads = [f"attention_{name}_{x}" for name in NAMES[:3] for x in letters]
    inputs = cut(model, NAMES[:3], merge=merge)
    assert sorted(layer.name for layer in inputs.layers) == sorted(["x", *heads, "attention"])
    assert isinstance(inputs.layers[-1], keras.layers.MultiHeadAttention)

    output = cut(model, ["output"], merge=merge)
    names = ["attention_core", *([] if merge else ["attention_output_s"]), "attention"]
    assert [layer.name for layer in output.layers[1:]] == names
    assert isinstance(output.layers[-1], keras.layers.Dense)


def test_scores_are_returned_beside_the_output():
    model, _ = self_attention(call={"return_attention_scores": True})
    copy = cut(model)
    assert [tensor.shape for tensor in copy.outputs] == [(None, 5, 8), (None, 2, 5, 5)]
    assert_same(copy, model, X)


def test_a_key_of_its_own_is_given_by_name_or_place():
    for by_name in (True, False):
        inputs = [keras.Input((5, 8), name=name) for name in ("q", "v", "k")]
        layer = keras.layers.MultiHeadAttention(2, 3, name="attention")
        q, v, k = inputs
        outputs = layer(query=q, key=k, value=v) if by_name else layer(q, v, k)
        model = keras.Model(inputs, outputs)
        for names in (NAMES, ["value"], ["key"]):
            assert_same(cut(model, names), model, X, X[::-1], 2 * X)


def test_masks_are_passed_on():
    """Those that are given, those of an embedding, and the one that the output inherits."""
    words = keras.Input((5,), dtype="int32", name="words")
    allowed = keras.Input((5, 5), dtype="bool", name="allowed")
    x = keras.layers.Embedding(9, 8, mask_zero=True)(words)
    attended = keras.layers.MultiHeadAttention(2, 3, name="attention")(
        x, x, attention_mask=allowed, use_causal_mask=True
    )
    mean = keras.layers.GlobalAveragePooling1D()(keras.layers.Add()([x, attended]))
    model = keras.Model([words, allowed], mean)
    generator = np.random.default_rng(0)
    padded = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    for names in (NAMES, ["query"], ["value", "output"]):
        assert_same(cut(model, names), model, padded, generator.random((2, 5, 5)) < 0.7)


def test_a_shared_layer_stays_shared():
    left, right = keras.Input((5, 8), name="left"), keras.Input((4, 8), name="right")
    layer = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model([left, right], [layer(left, right), layer(right, right)])
    copy = cut(model)
    assert len([part for part in copy.layers if "attention" in part.name]) == 5
    assert_same(copy, model, X, X[:, :4])


def test_regularizers_are_kept_and_kernel_constraints_are_not():
    model, _ = self_attention(
        kernel_regularizer="l2", bias_regularizer="l1", kernel_constraint="non_neg"
    )
    copy = cut(model)
    core, tail = copy.get_layer("attention_core"), copy.get_layer("attention")
    dense = [part for part in copy.layers if isinstance(part, keras.layers.Dense)]
    for part in (*dense, core.query_dense, core.output_dense):
        assert isinstance(part.kernel_regularizer, keras.regularizers.L2)
        assert part.kernel_constraint is None
    assert isinstance(tail.bias_regularizer, keras.regularizers.L1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"use_gate": True}, "has a gate that takes the query as it is"),
        ({"output_shape": (2, 4)}, "has an output of several axes"),
    ],
)
def test_what_does_not_fit_stays(arguments, reason):
    _, layer = self_attention(**arguments)
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == reason
