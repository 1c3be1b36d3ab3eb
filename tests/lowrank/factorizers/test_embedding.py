import keras
import numpy as np

from exporter.graph.rewrite import rewrite
from exporter.lowrank.factorizers import factorizer_for, reason_kept


def embedding(**arguments):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Embedding(12, 8, name="layer", **arguments)
    tokens = keras.Input((6,), dtype="int32")
    return keras.Model(tokens, keras.layers.LSTM(3)(layer(tokens))), layer


def cut(layer, rank, *, merge=True):
    factorizer = factorizer_for(layer)
    (kernel,) = factorizer.kernels(layer)
    return kernel, factorizer.replace(layer, {"": kernel.truncate(rank, merge=merge)})


def test_looking_up_costs_nothing():
    kernel, _ = cut(embedding()[1], 2)
    assert (kernel.m, kernel.n, kernel.positions) == (12, 8, 6)
    assert kernel.macs(None) == 0
    assert kernel.macs(2) == 6 * 2 * 8
    assert kernel.macs(2, merge=False) == 6 * (2 * 8 + 2 * 2)


def test_the_mask_of_zeros_reaches_what_follows():
    tokens = np.array([[1, 5, 2, 0, 0, 0]])
    models = {}
    for masked in (True, False):
        model, layer = embedding(mask_zero=masked)
        models[masked] = model(tokens)
        _, replacement = cut(layer, 8)
        copy = rewrite(model, {"layer": replacement})
        np.testing.assert_allclose(copy(tokens), models[masked], atol=1e-6)
    assert np.abs(models[True] - models[False]).max() > 1e-4


def test_the_regularizer_is_kept_and_the_constraint_is_not():
    _, layer = embedding(embeddings_regularizer="l2", embeddings_constraint="non_neg")
    head, *others = cut(layer, 3, merge=False)[1].layers
    assert isinstance(head.embeddings_regularizer, keras.regularizers.L2)
    assert head.embeddings_constraint is None
    assert [part.name for part in others] == ["layer_s", "layer"]
    for part in others:
        assert isinstance(part.kernel_regularizer, keras.regularizers.L2)
        assert not part.use_bias


class Renamed(keras.layers.ReversibleEmbedding):
    """Adds nothing, as those of keras_hub do."""


def reversible(**arguments):
    keras.utils.set_random_seed(0)
    layer = Renamed(12, 8, name="layer", **arguments)
    tokens = keras.Input((6,), dtype="int32")
    return tokens, layer, layer(tokens)


def test_a_reversible_embedding_is_cut_where_nothing_is_projected_back():
    tokens, layer, places = reversible(mask_zero=True)
    model = keras.Model(tokens, keras.layers.LSTM(3)(places))
    _, replacement = cut(layer, 8)
    given = np.array([[1, 5, 2, 0, 0, 0]])
    copy = rewrite(model, {"layer": replacement})
    np.testing.assert_allclose(copy(given), model(given), atol=1e-6)


def test_tied_or_separate_matrices_of_both_directions_are_kept():
    layer = reversible(tie_weights=False)[1]
    assert reason_kept(layer) == "its matrix is used in both directions"
    _, layer, places = reversible()
    assert factorizer_for(layer) is not None
    layer(places, reverse=True)
    assert factorizer_for(layer) is None
