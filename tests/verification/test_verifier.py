"""Honest artifacts pass, in their real runtimes; corrupted ones do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest

from exporter.data import Task
from exporter.formats import FORMAT_NAMES, FORMATS
from exporter.formats.base import Artifact
from exporter.isolation import ChildError
from exporter.verification.parity import execute
from exporter.verification.verifier import Verifier

FILES = ["tflite", "onnx"]
"""Formats whose artifact is one file."""

CORRUPTIONS: dict[str, Callable[[float], float]] = {
    "sign flipped": lambda weight: -weight,
    "one percent larger": lambda weight: 1.01 * weight,
    "not a number": lambda weight: float("nan"),
}


@pytest.fixture(scope="module")
def other(classifier: Any) -> Any:
    """An untrained model of the baseline's shapes."""
    keras.utils.set_random_seed(1)
    return keras.models.clone_model(classifier)


def _kernels(compressed: Any) -> dict[str, Any]:
    """The kernels of the model, in the order of the layers."""
    return {layer.name: layer.kernel.numpy() for layer in compressed.model.layers}


def _altered(kernel: Any, change: Callable[[float], float]) -> Any:
    altered = kernel.copy()
    place = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    altered[place] = change(float(kernel[place]))
    return altered


def _replace_in_flatbuffer(path: Path, old: Any, new: Any) -> None:
    # LiteRT stores a Dense kernel transposed.
    before, after = old.T.tobytes(), new.T.tobytes()
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def _replace_in_onnx(path: Path, old: Any, new: Any) -> None:
    proto = onnx.load(path)
    same = [
        tensor
        for tensor in proto.graph.initializer
        if np.array_equal(onnx.numpy_helper.to_array(tensor), old)
    ]
    assert len(same) == 1
    same[0].CopyFrom(onnx.numpy_helper.from_array(new, same[0].name))
    onnx.save(proto, path)


REPLACE = {"tflite": _replace_in_flatbuffer, "onnx": _replace_in_onnx}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_passes_an_honest_artifact_in_every_backend_on_every_probe(
    name: str, verifier: Verifier, honest: Callable[[str], Artifact], data: Any
) -> None:
    verdict = verifier.verify(honest(name))

    assert verdict.passed, verdict
    assert verdict.error is None
    compared = {(c.backend, c.probe, c.output, c.view) for c in verdict.parity.comparisons}
    assert compared == {
        (backend, probe, "probabilities", view)
        for backend in FORMATS[name].backends
        for probe in ("test", "random", "single", "edge")
        for view in ("value", "log_probability")
    }
    assert all(c.tolerance.derived and c.tolerance.atol > 0 for c in verdict.parity.comparisons)
    samples = {c.probe: c.samples for c in verdict.parity.comparisons}
    assert samples["test"] == len(data.test)
    labels = data.test.labels["probabilities"]
    expected = Task(2).metric(verifier.reference["test"]["probabilities"], labels)
    assert verdict.metrics == {"probabilities": expected}
    assert expected.value > 0.5
    assert [proof.layer for proof in verdict.structure.layers] == ["first", "second"]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("name", FILES)
def test_fails_an_artifact_with_one_weight_altered(
    name: str, corruption: str, verifier: Verifier, compressed: Any, tampered: Callable[..., Any]
) -> None:
    kernel = _kernels(compressed)["second"]
    altered = _altered(kernel, CORRUPTIONS[corruption])
    verdict = verifier.verify(tampered(name, lambda path: REPLACE[name](path, kernel, altered)))

    assert not verdict.passed
    assert verdict.error is None
    # The shapes are what they were: it is the predictions that give it away.
    assert verdict.structure.passed
    assert not verdict.parity.passed
    failed = {c.backend for c in verdict.parity.comparisons if not c.passed}
    assert failed == set(FORMATS[name].backends)
    kinds = {fault.kind for fault in verdict.parity.faults}
    assert kinds == ({"not finite"} if corruption == "not a number" else set())


@pytest.mark.parametrize("layer", ["first_u", "first", "second_u", "probabilities"])
def test_fails_an_onnx_file_with_a_weight_of_any_layer_altered(
    layer: str, verifier: Verifier, compressed: Any, tampered: Callable[..., Any]
) -> None:
    kernel = _kernels(compressed)[layer]
    altered = _altered(kernel, CORRUPTIONS["one percent larger"])
    verdict = verifier.verify(
        tampered("onnx", lambda path: _replace_in_onnx(path, kernel, altered))
    )

    assert not verdict.parity.passed


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_fails_a_truncated_file_without_raising(
    name: str, part: float, verifier: Verifier, tampered: Callable[..., Any]
) -> None:
    def truncate(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])

    verdict = verifier.verify(tampered(name, truncate))

    assert not verdict.passed
    assert verdict.error
    assert verdict.parity is None
    assert verdict.metrics == {}


@pytest.mark.parametrize("name", FILES)
def test_runtime_that_is_given_a_truncated_file_ends_in_its_child(
    name: str, verifier: Verifier, tampered: Callable[..., Any], tmp_path: Path
) -> None:
    artifact = tampered(name, lambda path: path.write_bytes(path.read_bytes()[:5000]))
    limits = dict.fromkeys(FORMATS[name].backends)

    with pytest.raises(ChildError, match=r"\w"):
        execute(artifact, verifier.probes, tmp_path, limits)


@pytest.mark.slow
def test_fails_a_saved_model_with_damaged_variables(
    verifier: Verifier, tampered: Callable[..., Any]
) -> None:
    def damage(path: Path) -> None:
        (file,) = (path / "variables").glob("*.data-*")
        content = bytearray(file.read_bytes())
        content[200] ^= 0xFF
        file.write_bytes(content)

    verdict = verifier.verify(tampered("saved_model", damage))

    assert not verdict.passed
    assert verdict.error


@pytest.mark.one_in(3)
# A process that imports TensorFlow for the format of its own takes long, and proves the same.
@pytest.mark.parametrize("name", [n for n in FORMAT_NAMES if n not in {"c", "saved_model"}])
def test_fails_the_artifact_of_another_model_of_the_same_shapes(
    name: str, verifier: Verifier, compressed: Any, export_as: Callable[..., Artifact]
) -> None:
    model = keras.models.clone_model(compressed.model)
    model.set_weights([0.9 * weight for weight in compressed.model.get_weights()])
    verdict = verifier.verify(export_as(name, model))

    assert not verdict.passed
    assert verdict.structure.passed
    assert not verdict.parity.passed
    assert all(c.max_abs > c.tolerance.atol for c in verdict.parity.comparisons if not c.passed)


def test_fails_the_artifact_of_another_model_of_other_shapes(
    verifier: Verifier, other: Any, export_as: Callable[..., Artifact]
) -> None:
    verdict = verifier.verify(export_as("onnx", other))

    assert not verdict.parity.passed
    assert not verdict.structure.passed


def test_fails_an_artifact_whose_outputs_bear_other_names(
    verifier: Verifier, tampered: Callable[..., Any]
) -> None:
    def rename(path: Path) -> None:
        proto = onnx.load(path)
        for node in proto.graph.node:
            node.output[:] = ["scores" if n == "probabilities" else n for n in node.output]
        proto.graph.output[0].name = "scores"
        onnx.save(proto, path)

    verdict = verifier.verify(tampered("onnx", rename))

    assert not verdict.passed
    assert {fault.kind for fault in verdict.parity.faults} == {"missing"}
    assert verdict.metrics == {}


def test_fails_an_artifact_whose_inputs_bear_other_names(
    verifier: Verifier, tampered: Callable[..., Any]
) -> None:
    def rename(path: Path) -> None:
        proto = onnx.load(path)
        for node in proto.graph.node:
            node.input[:] = ["pixels" if n == "features" else n for n in node.input]
        proto.graph.input[0].name = "pixels"
        onnx.save(proto, path)

    verdict = verifier.verify(tampered("onnx", rename))

    assert not verdict.passed
    assert "pixels" in verdict.error
    assert verdict.structure.passed


def test_fails_an_artifact_that_is_not_there(
    verifier: Verifier, honest: Any, tmp_path: Path
) -> None:

    verdict = verifier.verify(replace(honest("onnx"), path=tmp_path / "gone.onnx"))

    assert not verdict.passed
    assert "gone.onnx" in verdict.error


@pytest.mark.parametrize("given", [{"atol": 0.25}, {"rtol": 0.5}, {"atol": 1e-3, "rtol": 1e-2}])
def test_applies_the_given_tolerance_and_no_other(
    given: dict[str, float], compressed: Any, data: Any, honest: Any, tmp_path: Path
) -> None:
    verdict = Verifier(compressed, data, folder=tmp_path, **given).verify(honest("onnx"))

    assert verdict.passed
    for comparison in verdict.parity.comparisons:
        tolerance = comparison.tolerance
        assert {"atol": tolerance.atol, "rtol": tolerance.rtol} == {"atol": 0, "rtol": 0, **given}
        assert not tolerance.derived
        assert comparison.view == "value"


def test_given_tolerance_of_zero_fails_what_only_rounds(
    compressed: Any, data: Any, honest: Callable[[str], Artifact], tmp_path: Path
) -> None:
    verdict = Verifier(compressed, data, folder=tmp_path, atol=0).verify(honest("tflite"))

    assert not verdict.passed
    worst = max(verdict.parity.comparisons, key=lambda comparison: comparison.max_abs)
    assert 0 < worst.max_abs < 1e-5


def test_verifies_on_random_inputs_where_there_are_no_data(
    compressed: Any, honest: Callable[[str], Artifact], tmp_path: Path
) -> None:
    from exporter.data import load_dataset

    verifier = Verifier(compressed, load_dataset("none"), folder=tmp_path)
    verdict = verifier.verify(honest("onnx"))

    assert verdict.passed
    assert verdict.metrics == {}
    assert {c.probe for c in verdict.parity.comparisons} == {"random", "single", "edge"}
