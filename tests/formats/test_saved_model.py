import numpy as np
import pytest
import tensorflow as tf

from exporter.formats import FORMATS
from exporter.graph.network import Network
from exporter.graph.signature import Signature


@pytest.mark.parametrize("key", ["serving_default", "serve"])
@pytest.mark.parametrize("zoo_name", ["shared_dense", "dict_inputs_outputs"])
def test_both_signatures_serve_named_tensors(zoo_name, export_zoo, samples, key):
    model, path = export_zoo("saved_model", zoo_name)
    signature = tf.saved_model.load(str(path)).signatures[key]
    expected = Signature(model)
    specs = signature.structured_input_signature[1]
    assert {name: tuple(spec.shape) for name, spec in specs.items()} == {
        info.name: info.shape for info in expected.inputs
    }
    assert {name: tuple(spec.shape) for name, spec in signature.structured_outputs.items()} == {
        info.name: info.shape for info in expected.outputs
    }
    inputs = samples(model, 4)
    actual = signature(**{name: tf.constant(array) for name, array in inputs.items()})
    for name, value in Network(model).runner(eager=True)(inputs).items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, atol=1e-6)


def test_weights_are_variables_and_not_constants(export_zoo):
    """Constants would bloat the graph, and end at two gigabytes."""
    model, path = export_zoo("saved_model", "sequential_mlp")
    variables = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    shapes = variables.get_variable_to_shape_map().values()
    for weight in model.weights:
        assert list(weight.shape) in shapes
    kernels = [t for t in FORMATS["saved_model"].stored_tensors(path) if t.shape == (36, 40)]
    assert len(kernels) == 1


def test_nothing_but_the_folder_is_needed(build, export, tmp_path):
    """No assets or code of Keras: TensorFlow Serving reads the folder alone."""
    path = export("saved_model", build("tiny"))
    moved = path.rename(tmp_path / "elsewhere")
    outputs = FORMATS["saved_model"].load(moved, "tensorflow")(
        {"features": np.ones((2, 8), "float32")}
    )
    assert outputs["scores"].shape == (2, 6)
    assert not any((moved / "assets").iterdir())
