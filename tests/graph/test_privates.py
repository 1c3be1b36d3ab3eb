"""Private attributes of Keras: read in exporter/graph/ alone, and all there still."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import exporter
from exporter.graph.layers import attention_options, with_parts

PACKAGE = Path(exporter.__file__).parent

KERAS_PRIVATES = {
    "_activity_regularizer",
    "_autocast",
    "_bias_constraint",
    "_build_shapes_dict",
    "_bias_regularizer",
    "_flatten_layers",
    "_functional",
    "_inbound_nodes",
    "_inputs_struct",
    "_kernel_constraint",
    "_kernel_regularizer",
    "_keras_history",
    "_keras_mask",
    "_layers",
    "_nodes",
    "_non_trainable_variables",
    "_nodes_by_depth",
    "_operations",
    "_outbound_nodes",
    "_output_shape",
    "_outputs_struct",
    "_path",
    "_standardize_inputs",
    "_track_trackable",
    "_trainable_variables",
    "_use_gate",
}


def privates_of_others(source: str) -> set[str]:
    """Private names that code asks anything but ``self`` or ``cls`` for, by ``getattr`` as well."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in KERAS_PRIVATES:
            found.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in {"self", "cls"} and not node.attr.startswith("__"):
                found.add(node.attr)
    return found


def outside() -> list[Path]:
    """The sources of the package outside of exporter/graph/."""
    graph = PACKAGE / "graph"
    return [file for file in sorted(PACKAGE.rglob("*.py")) if graph not in file.parents]


def test_only_the_graph_folder_reads_them() -> None:
    found = {str(file): privates_of_others(file.read_text()) & KERAS_PRIVATES for file in outside()}
    assert {file: names for file, names in found.items() if names} == {}


def test_reading_one_is_noticed() -> None:
    source = """
class Own:
    def read(self, layer):
        return self._layers, layer.calls[0]._inbound_nodes[0], getattr(layer, "_use_gate")
"""
    assert privates_of_others(source) == {"_inbound_nodes", "_use_gate"}


def test_the_list_names_all_that_are_read() -> None:
    for file in (PACKAGE / "graph").rglob("*.py"):
        assert privates_of_others(file.read_text()) <= KERAS_PRIVATES, file


def test_layers_know_the_shapes_that_they_were_built_with() -> None:
    layer = layers.Dense(3)
    layer(np.ones((2, 4)))
    assert getattr(layer, "_build_shapes_dict", None) == {"input_shape": (2, 4)}, (
        "Layers have lost _build_shapes_dict: the inputs of subclassed models are unknown."
    )


@pytest.fixture
def model() -> keras.Model:
    inputs = keras.Input((4,), name="x")
    return keras.Model({"x": inputs}, layers.Dense(3, name="y")(inputs))


def attention(**options: object) -> layers.MultiHeadAttention:
    return layers.MultiHeadAttention(2, 3, **options)


def test_tensors_know_the_layer_that_made_them(model: keras.Model) -> None:
    made_by = getattr(model.outputs[0], "_keras_history", None)
    assert getattr(made_by, "operation", None) is model.get_layer("y"), (
        "Tensors have lost _keras_history.operation: inputs and outputs cannot be named, links of "
        "layers not found, nor inputs copied."
    )


def test_layers_know_their_calls(model: keras.Model) -> None:
    (node,) = getattr(model.get_layer("y"), "_inbound_nodes", None) or [None]
    assert all(hasattr(node, name) for name in ("arguments", "input_tensors", "outputs")), (
        "Layers have lost _inbound_nodes: what a layer was called with is unknown, and its shapes."
    )


def test_graphs_know_their_calls(model: keras.Model) -> None:
    by_depth = getattr(model, "_nodes_by_depth", {})
    called = [node.operation for nodes in by_depth.values() for node in nodes]
    assert model.get_layer("y") in called, (
        "Models have lost _nodes_by_depth: links of layers, which folding and equalization look "
        "for, cannot be found."
    )


def test_sequential_models_have_a_graph() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    assert isinstance(getattr(model, "_functional", None), keras.Model), (
        "Sequential models have lost _functional: they have no graph to find links of layers in."
    )


def test_models_know_the_structure_of_their_inputs(model: keras.Model) -> None:
    assert list(getattr(model, "_inputs_struct", [])) == ["x"], (
        "Models have lost _inputs_struct: those that take dictionaries cannot be called by names."
    )


def test_layers_know_the_weights_of_their_own() -> None:
    layer = layers.BatchNormalization()
    layer.build((None, 4))
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    assert [weight.name for weight in own] == ["gamma", "beta", "moving_mean", "moving_variance"], (
        "Layers have lost _trainable_variables: weights in files of Keras 2 cannot be told apart."
    )


def test_layers_list_those_within_them() -> None:
    inner = layers.Dense(3)
    outer = layers.TimeDistributed(inner)
    assert hasattr(outer, "_flatten_layers"), (
        "Layers have lost _flatten_layers: linear layers within wrappers are not found."
    )
    assert with_parts(outer) == [outer, inner]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_gate", True),
        ("output_shape", (5, 7)),
        ("kernel_regularizer", keras.regularizers.L2(0.1)),
        ("bias_regularizer", keras.regularizers.L2(0.1)),
        ("bias_constraint", keras.constraints.NonNeg()),
        ("activity_regularizer", keras.regularizers.L2(0.1)),
    ],
)
def test_attention_keeps_its_arguments(name: str, value: object) -> None:
    layer = attention(**{name: value})
    assert hasattr(layer, f"_{name}"), (
        f"MultiHeadAttention has lost _{name}: its projections cannot be cut with their options."
    )
    assert attention_options(layer, name) == {name: value}
