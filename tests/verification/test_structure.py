"""What is stored in an artifact: real ones, honest and not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest

from exporter.commands.compress import compress
from exporter.formats import FORMAT_NAMES, FORMATS
from exporter.formats.base import Artifact, StoredTensor
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed
from exporter.verification.structure import StructureProof, prove_structure
from exporter.verification.verifier import Verifier

PADDING = 2**20


def proof_of(artifact: Artifact, compressed: Any) -> StructureProof:
    stored = FORMATS[artifact.format].stored_tensors(artifact.path)
    return prove_structure(stored, artifact.size, compressed)


def as_planned(compressed: Any, *, transposed: bool = False) -> list[StoredTensor]:
    """What an artifact stores that holds the weights of the model and nothing else."""
    arrays = [(weight.path, weight.numpy()) for weight in compressed.model.weights]
    return [StoredTensor.of(n, np.ascontiguousarray(a.T) if transposed else a) for n, a in arrays]


def nbytes(stored: list[StoredTensor]) -> int:
    return sum(tensor.nbytes for tensor in stored)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_honest_artifact_stores_the_factors_and_not_the_matrices(
    name: str, honest: Callable[[str], Artifact], compressed: Any
) -> None:
    artifact = honest(name)
    proof = proof_of(artifact, compressed)

    assert proof.passed
    assert [(p.layer, p.factors, p.dense_shape) for p in proof.layers] == [
        ("first", ((64, 12), (12, 128)), (64, 128)),
        ("second", ((128, 10), (10, 96)), (128, 96)),
    ]
    assert proof.predicted_bytes == 4 * compressed.model.count_params()
    assert proof.stored_bytes == pytest.approx(proof.predicted_bytes, rel=0.1)
    assert proof.file_bytes == artifact.size


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_fails_an_artifact_in_which_the_factors_were_multiplied_back(
    name: str, folded: Any, compressed: Any, export_as: Callable[..., Artifact]
) -> None:
    proof = proof_of(export_as(name, folded), compressed)

    assert not proof.passed
    assert not any(layer.found for layer in proof.layers)
    assert not any(layer.dense_gone for layer in proof.layers)
    assert not proof.weights_as_predicted
    assert proof.stored_bytes > 3 * proof.predicted_bytes


def test_only_structure_tells_multiplied_factors_from_honest_ones(
    folded: Any, verifier: Verifier, export_as: Callable[..., Artifact]
) -> None:
    verdict = verifier.verify(export_as("onnx", folded))

    assert verdict.parity.passed
    assert not verdict.structure.passed
    assert not verdict.passed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_fails_an_artifact_in_which_one_layer_was_multiplied_back(
    name: str, folded: Any, compressed: Any, export_as: Callable[..., Artifact]
) -> None:
    layers = [compressed.model.get_layer(n) for n in ("first_u", "first")]
    features = keras.Input((64,), name="features")
    tensor = features
    for layer in (*layers, folded.get_layer("second"), folded.get_layer("probabilities")):
        tensor = layer(tensor)
    proof = proof_of(export_as(name, keras.Model(features, tensor)), compressed)

    assert not proof.passed
    assert {p.layer: (p.found, p.dense_gone) for p in proof.layers} == {
        "first": (True, True),
        "second": (False, False),
    }


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_passes_three_factors_with_the_singular_values_apart(
    name: str, classifier: Any, export_as: Callable[..., Artifact]
) -> None:
    compressed = compress(classifier, {"first": 12, "second": 10}, merge=False)
    proof = proof_of(export_as(name, compressed.model), compressed)

    assert proof.passed
    assert [p.factors for p in proof.layers] == [
        ((64, 12), (12, 12), (12, 128)),
        ((128, 10), (10, 10), (10, 96)),
    ]


def test_merged_factors_are_not_three_factors(
    classifier: Any, honest: Callable[[str], Artifact]
) -> None:
    proof = proof_of(honest("onnx"), compress(classifier, {"first": 12, "second": 10}, merge=False))

    assert not proof.passed
    assert not any(layer.found for layer in proof.layers)


def test_storage_is_found_transposed(honest: Callable[[str], Artifact], compressed: Any) -> None:
    stored = FORMATS["tflite"].stored_tensors(honest("tflite").path)
    shapes = {tensor.shape for tensor in stored}

    assert {(12, 64), (128, 12), (10, 128), (96, 10)} <= shapes
    assert prove_structure(stored, nbytes(stored), compressed).passed
    turned = as_planned(compressed, transposed=True)
    assert prove_structure(turned, nbytes(turned), compressed).passed


def test_square_layers_keep_their_matrices_apart() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,), name="features"),
            *(keras.layers.Dense(64, name=f"square_{number}") for number in range(3)),
        ]
    )
    compressed = compress(model, {"square_0": 8, "square_1": 8})
    stored = as_planned(compressed)
    assert prove_structure(stored, nbytes(stored), compressed).passed

    dense = StoredTensor.of("product", model.get_layer("square_0").kernel.numpy())
    assert not any(
        layer.dense_gone for layer in prove_structure([*stored, dense], 0, compressed).layers
    )


@pytest.mark.parametrize("missing", ["first_u", "first", "second_u", "second"])
def test_fails_if_a_factor_is_missing(missing: str, compressed: Any) -> None:
    stored = as_planned(compressed)
    left = [tensor for tensor in stored if tensor.name != f"{missing}/kernel"]
    assert len(left) == len(stored) - 1
    proof = prove_structure(left, nbytes(left), compressed)

    assert not proof.passed
    (layer,) = (p.layer for p in proof.layers if not p.found)
    assert layer == missing.removesuffix("_u")


def test_tensor_that_is_referred_to_twice_counts_once(compressed: Any) -> None:
    stored = as_planned(compressed)
    proof = prove_structure([*stored, *stored], nbytes(stored), compressed)

    assert proof.passed
    assert proof.stored_bytes == proof.predicted_bytes == nbytes(stored)


def test_bias_of_zeros_may_be_dropped(compressed: Any) -> None:
    stored = [tensor for tensor in as_planned(compressed) if tensor.name != "first/bias"]

    assert prove_structure(stored, nbytes(stored), compressed).passed


def test_factor_that_is_the_same_as_another_is_not_found_twice() -> None:
    model = keras.Sequential(
        [
            keras.Input((64,), name="features"),
            *(keras.layers.Dense(64, name=f"square_{number}") for number in range(2)),
        ]
    )
    compressed = compress(model, 8)
    stored = as_planned(compressed)
    doubled = [replace(tensor, digest=stored[0].digest) for tensor in stored]

    assert not prove_structure(doubled, nbytes(stored), compressed).passed


def _pad_onnx(path: Path) -> None:
    proto = onnx.load(path)
    padding = np.arange(PADDING, dtype="uint8")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(padding, "padding"))
    onnx.save(proto, path)


def _pad_tflite(path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    buffer = schema.BufferT()
    buffer.data = np.arange(PADDING, dtype="uint8")
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = b"padding", [PADDING], len(model.buffers) - 1
    tensor.type = schema.TensorType.UINT8
    model.subgraphs[0].tensors.append(tensor)
    flatbuffer_utils.write_model(model, str(path))


@pytest.mark.parametrize(("name", "pad"), [("onnx", _pad_onnx), ("tflite", _pad_tflite)])
def test_a_large_constant_of_the_converter_is_told_and_no_fault(
    name: str, pad: Callable[[Path], None], verifier: Verifier, tampered: Callable[..., Any]
) -> None:
    verdict = verifier.verify(tampered(name, pad))

    assert verdict.passed
    assert not verdict.structure.weights_as_predicted
    assert not verdict.structure.file_as_predicted
    assert verdict.structure.stored_bytes > PADDING


def test_a_large_variable_of_a_saved_model_is_told(compressed: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    from exporter.formats.base import describe
    from exporter.graph.conversion import serving_module

    module, function = serving_module(compressed.network.signature)
    module.padding = tf.Variable(np.arange(PADDING, dtype="uint8"))
    path = tmp_path / "model"
    tf.saved_model.save(module, str(path), signatures={"serving_default": function})
    proof = proof_of(
        describe(FORMATS["saved_model"], "float32", path, compressed.network), compressed
    )

    assert not proof.weights_as_predicted
    assert not proof.file_as_predicted


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_an_artifact_that_grew_without_storing_a_tensor_is_told(
    name: str, compressed: Any, tampered: Callable[..., Any]
) -> None:
    def grow(path: Path) -> None:
        file = path / "assets.bin" if path.is_dir() else path
        with file.open("ab") as stream:
            stream.write(bytes(PADDING))

    artifact = tampered(name, grow)
    stored = FORMATS[name].stored_tensors(artifact.path) if name != "onnx" else []
    proof = prove_structure(stored or as_planned(compressed), artifact.size, compressed)

    assert not proof.file_as_predicted
    assert proof.weights_as_predicted


@pytest.mark.parametrize("slack", [0.99, 1.01])
def test_bytes_may_differ_by_five_percent_and_sixteen_kibibytes(
    slack: float, compressed: Any
) -> None:
    stored = as_planned(compressed)
    extra = int(slack * (0.05 * nbytes(stored) + 16 * 1024))
    padding = StoredTensor.of("padding", np.arange(extra, dtype="uint8"))

    proof = prove_structure([*stored, padding], 0, compressed)

    assert proof.weights_as_predicted is (slack < 1)


def test_model_that_was_not_compressed_is_held_to_its_own_weights(
    classifier: Any, export_as: Callable[..., Artifact]
) -> None:
    from exporter.lowrank.ranks.policy import RankPlan

    proof = proof_of(
        export_as("onnx", classifier), Compressed(Network(classifier), RankPlan(()), {})
    )

    assert proof.passed
    assert proof.layers == ()


@pytest.mark.slow
def test_graph_of_a_deep_model_may_outweigh_its_weights(
    export_as: Callable[..., Artifact],
) -> None:
    import keras

    from exporter.lowrank.ranks.policy import RankPlan

    deep = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, activation="relu") for _ in range(60))]
    )
    proof = proof_of(export_as("saved_model", deep), Compressed(Network(deep), RankPlan(()), {}))

    assert proof.file_bytes > proof.predicted_bytes + 256 * 1024
    assert proof.passed


def test_the_zeros_that_a_loop_starts_from_are_no_matrix(
    export_as: Callable[..., Artifact],
) -> None:
    keras.utils.set_random_seed(0)
    stack = [keras.layers.LSTM(8), keras.layers.Dense(1, name="score")]
    compressed = compress(keras.Sequential([keras.Input((3, 2), name="x"), *stack]), rank="full")

    proof = proof_of(export_as("tflite", compressed.model), compressed)

    assert proof.passed
    assert "score" in {layer.layer for layer in proof.layers}
