import keras
import numpy as np
import pytest

from exporter.graph.rewrite import rewrite
from exporter.lowrank.factorizers import factorizer_for
from exporter.lowrank.linalg.truncation import Truncation


def recurrent(kind, *, states=0, **arguments):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((5, 10)), *(keras.Input((4,)) for _ in range(states))]
    layer = getattr(keras.layers, kind)(4, name="layer", bias_initializer="normal", **arguments)
    masked = keras.layers.Masking()(inputs[0])
    outputs = layer(masked, initial_state=inputs[1:]) if states else layer(masked)
    return keras.Model(inputs, outputs), layer


def cut(layer, rank=None, shift=None):
    factorizer = factorizer_for(layer)
    (kernel,) = factorizer.kernels(layer)
    truncation = kernel.truncate(rank or kernel.full_rank)
    if shift is not None:
        truncation = Truncation(truncation.matrices, shift, 0.0)
    return kernel, factorizer.replace(layer, {"": truncation})


@pytest.mark.parametrize(("kind", "states"), [("LSTM", 2), ("GRU", 1)])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_masks_and_initial_states_reach_the_layer(kind, states, backwards):
    model, layer = recurrent(kind, states=states, go_backwards=backwards, return_sequences=True)
    copy = rewrite(model, {"layer": cut(layer)[1]})
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(3, 5, 10)), *generator.normal(size=(states, 3, 4))]
    inputs[0][1, 3:] = 0  # Is masked.
    np.testing.assert_allclose(copy(inputs), model(inputs), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "arguments", "gates"),
    [("LSTM", {}, 4), ("GRU", {}, 3), ("GRU", {"reset_after": False}, 3)],
)
def test_the_shift_goes_to_the_bias_of_the_inputs(kind, arguments, gates):
    _, layer = recurrent(kind, **arguments)
    shift = np.arange(4.0 * gates)[None]
    kernel, replacement = cut(layer, 3, shift)
    assert (kernel.n, kernel.has_bias) == (4 * gates, True)
    before, after = layer.cell.bias.numpy(), replacement.layers[-1].cell.bias.numpy()
    moved = np.atleast_2d(after - before)
    np.testing.assert_allclose(moved[0], shift[0], atol=1e-6)
    np.testing.assert_array_equal(moved[1:], 0)


def test_only_the_map_from_the_inputs_is_counted_and_cut():
    _, layer = recurrent("LSTM", kernel_regularizer="l2", kernel_constraint="non_neg")
    kernel, replacement = cut(layer, 3)
    assert (kernel.m, kernel.n, kernel.positions) == (10, 16, 5)
    assert kernel.other_params == 4 * 16 + 16
    head, last = replacement.layers
    assert (head.name, last.name) == ("layer_u", "layer")
    np.testing.assert_array_equal(
        last.cell.recurrent_kernel.numpy(), layer.cell.recurrent_kernel.numpy()
    )
    assert isinstance(head.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(last.kernel_regularizer, keras.regularizers.L2)
    assert last.kernel_constraint is None
