from collections import Counter

import keras
import numpy as np
import onnx
import pytest

from exporter.formats import FORMATS
from exporter.graph.network import Network

layers = keras.layers
ONNX = FORMATS["onnx"]
KINDS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}


@pytest.fixture
def same(export, randomize):
    """Exports a model with random weights, compares it with Keras, and returns its operators."""

    def check(model, **options):
        randomize(model, 0)
        path = export("onnx", model, **options)
        network, rng = Network(model), np.random.default_rng(0)
        for count in (1, 3):
            shapes = {
                info.name: (count, *network.signature.sample_shape(info)[1:])
                for info in network.inputs
            }
            inputs = {name: rng.normal(size=s).astype("float32") for name, s in shapes.items()}
            expected = network.runner(eager=True)(inputs)
            actual = ONNX.load(path, "cpu")(inputs)
            for name, values in expected.items():
                np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-5)
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    return check


def sequential(*stack, length=5):
    return keras.Sequential([keras.Input((length, 3), name="x"), *stack])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_sequences": True},
        {"use_bias": False, "activation": "relu"},
        {"return_sequences": True, "go_backwards": True},
    ],
    ids=str,
)
def test_recurrent_layers_have_operators_of_their_own(kind, options, same):
    operators = same(sequential(getattr(layers, kind)(4, **options)))
    assert operators[KINDS[kind]] == 1
    assert "Loop" not in operators


def test_gates_of_a_gru_that_reset_before_the_product(same):
    assert same(sequential(layers.GRU(4, reset_after=False)))["GRU"] == 1


def test_lengths_may_be_free(same):
    assert same(sequential(layers.LSTM(4, return_sequences=True), length=None))["LSTM"] == 1


@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
def test_both_directions(merge_mode, same):
    layer = layers.GRU(4, return_sequences=True)
    inputs = keras.Input((5, 3))
    both = layers.Bidirectional(layer, merge_mode=merge_mode)(inputs)
    operators = same(keras.Model(inputs, both))
    assert operators["GRU"] == 2
    assert "ReverseSequence" not in operators


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_taken_and_given(kind, same):
    count = 2 if kind == "LSTM" else 1
    states = [keras.Input((4,), name=f"state_{number}") for number in range(count)]
    inputs = keras.Input((5, 3), name="x")
    layer = getattr(layers, kind)(4, return_sequences=True, return_state=True)
    results = layer(inputs, initial_state=states)
    assert same(keras.Model([inputs, *states], list(results)))[KINDS[kind]] == 1


def test_a_shared_layer_has_an_operator_for_each_use(same):
    inputs = keras.Input((5, 4))
    layer = layers.LSTM(4, return_sequences=True)
    assert same(keras.Model(inputs, layer(layer(inputs))))["LSTM"] == 2


@pytest.mark.slow
def test_other_recurrences_stay_loops(same):
    masked = sequential(layers.Masking(), layers.Bidirectional(layers.LSTM(4)))
    elu = sequential(layers.Bidirectional(layers.LSTM(4, activation="elu", return_sequences=True)))
    cells = sequential(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]))
    for model in (masked, elu, cells):
        operators = same(model)
        assert operators["Loop"]
        assert not operators.keys() & set(KINDS.values())


def test_large_weights_are_stored_once(same, export, monkeypatch):
    monkeypatch.setattr("exporter.formats.onnx.converter.LARGE_BYTES", 64)
    model = sequential(layers.LSTM(4), layers.Dense(8))
    same(model)
    stored = ONNX.stored_tensors(export("onnx", model))
    assert sorted(t.shape for t in stored if len(t.shape) > 1) == [
        (1, 16, 3), (1, 16, 4), (1, 32), (4, 8)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["onnx", "ort"])
@pytest.mark.parametrize(("variant", "bytes_each"), [("float16", 2), ("dynamic", 1)])
def test_kernels_are_stored_in_the_type_of_the_variant(name, variant, bytes_each, export):
    model = sequential(layers.LSTM(64, name="memory"))
    path = export(name, model, variant=variant)
    (kernel,) = (t for t in FORMATS[name].stored_tensors(path) if t.shape == (1, 256, 64))
    assert kernel.nbytes == 256 * 64 * bytes_each


def test_nothing_is_logged(export, caplog):
    export("onnx", sequential(layers.LSTM(4)))
    assert not [record for record in caplog.records if "PyFunc" in record.getMessage()]
