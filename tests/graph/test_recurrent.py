import keras
import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.graph.network import Network
from exporter.graph.recurrent import count_steps, loops_over_free_length, replaced_loops, unrolled

layers = keras.layers


def test_stateful_layers_are_refused_with_the_way_out():
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 4, 3)), layers.LSTM(4, stateful=True, name="memory")]
    )
    with pytest.raises(ModelError, match=r"'memory' is stateful.*initial_state"):
        Network(model)


def test_loops_are_found_within_wrappers_and_nested_models():
    inner = keras.Sequential(
        [keras.Input((None, 3)), layers.Bidirectional(layers.GRU(2), name="both")], name="inner"
    )
    inputs = keras.Input((5, 3))
    memory = layers.LSTM(3, return_sequences=True, name="memory")
    network = Network(keras.Model(inputs, inner(memory(inputs))))
    assert loops_over_free_length(network.layers) == ["inner/both"]
    assert count_steps(network.layers) == 5


def test_a_wrapper_and_its_parts_are_counted_once_and_get_their_calls_back():
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True), name="both")
    network = Network(keras.Sequential([keras.Input((5, 3)), both]))
    assert count_steps(network.layers) == 10
    with replaced_loops(network.layers, _own_loop):
        assert "call" in vars(both.forward_layer)
    assert "call" not in vars(both.forward_layer)


def test_loops_are_written_out_for_the_time_of_a_block():
    model = keras.Sequential([keras.Input((5, 3)), layers.Bidirectional(layers.LSTM(2))])
    parts = [model.layers[0].forward_layer, model.layers[0].backward_layer]
    with unrolled(model):
        assert all(part.unroll for part in parts)
    assert not any(part.unroll for part in parts)


def _own_loop(layer, sequences, states):
    """The layer itself, with outputs in the order of its input."""
    del states
    plain = type(layer).from_config(
        {**layer.get_config(), "return_sequences": True, "return_state": True}
    )
    plain.build(sequences.shape)
    plain.set_weights(layer.get_weights())
    outputs, *last = plain(sequences)
    return [keras.ops.flip(outputs, axis=1) if layer.go_backwards else outputs, *last]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("options", [{}, {"return_sequences": True}, {"return_state": True}])
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_result_does_not_depend_on_who_computes_a_loop(answers, options, wrapped):
    keras.utils.set_random_seed(0)
    layer = layers.GRU(2, go_backwards=not wrapped, **options)
    inputs = keras.Input((5, 3))
    outputs = (layers.Bidirectional(layer) if wrapped else layer)(inputs)
    model = keras.Model(inputs, outputs)
    batch = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    expected = keras.tree.flatten(model(batch))
    with replaced_loops(Network(model).layers, _own_loop if answers else lambda *_: None):
        actual = keras.tree.flatten(model(batch))
    for ours, own in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-6)
