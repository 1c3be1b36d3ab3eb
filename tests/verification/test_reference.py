"""The stored proof of a run, without the model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from exporter.data import Task
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, describe
from exporter.graph.network import Network
from exporter.verification.probes import Probe
from exporter.verification.reference import MOST_BYTES, MOST_SAMPLES, Reference
from exporter.verification.tolerance import Tolerance

TIGHT = Tolerance(1e-5, 1e-5, derived=False, rounding_error=None)


@pytest.fixture
def network(build):
    return Network(build("tiny"))


@pytest.fixture
def reference(network):
    rng = np.random.default_rng(0)
    inputs = {"features": rng.normal(size=(40, 8)).astype(np.float32)}
    outputs = network.runner()(inputs)
    (output,) = outputs
    labels = {output: np.arange(40) % 3}
    probe = Probe("test", inputs, 8, labels)
    tolerances = {("test", output, "value"): TIGHT}
    return Reference([probe], {"test": outputs}, tolerances, {output: Task(classes=3)})


def exported(network, name, folder):
    fmt = FORMATS[name]
    path = folder / f"model{fmt.suffix}"
    fmt.export(network, path, ExportOptions())
    return describe(fmt, "float32", path, network)


def test_a_reference_comes_back_as_it_was(reference, tmp_path):
    reference.save(tmp_path / "reference.npz")
    back = Reference.load(tmp_path / "reference.npz")
    assert (back.tolerances, back.tasks) == (reference.tolerances, reference.tasks)
    (probe,), (original,) = back.probes, reference.probes
    assert (probe.name, probe.batch_size) == (original.name, original.batch_size)
    for mine, others in (
        (probe.inputs, original.inputs),
        (probe.labels, original.labels),
        (back.predictions["test"], reference.predictions["test"]),
    ):
        assert mine.keys() == others.keys()
        for name, array in mine.items():
            np.testing.assert_array_equal(array, others[name])


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_an_artifact_passes_and_one_of_other_weights_fails(name, network, reference, tmp_path):
    artifact = exported(network, name, tmp_path)
    verdict = reference.verify(artifact, tmp_path)
    assert verdict.passed
    assert verdict.stored
    assert verdict.parity.comparisons
    changed = network.copy()
    *_, bias = changed.model.weights
    bias.assign_add(np.full(bias.shape, 1e-3))
    artifact.path.unlink()
    assert not reference.verify(exported(changed, name, tmp_path), tmp_path).passed


def test_a_file_that_is_no_artifact_fails(network, reference, tmp_path):
    artifact = exported(network, "tflite", tmp_path)
    artifact.path.write_bytes(b"no model")
    verdict = reference.verify(artifact, tmp_path)
    assert not verdict.passed
    assert verdict.error


def test_what_is_stored_is_bounded(network):
    def of(samples, size):
        arrays = {"x": np.zeros((samples, size), np.float32)}
        probe = Probe("test", arrays, 8)
        return len(Reference([probe], {"test": arrays}, {}, {}).thinned().probes[0])

    assert of(1000, 4) == MOST_SAMPLES
    assert of(40, 4) == 40
    assert of(100, MOST_BYTES // 16 // 8) == 16  # Two batches are kept whatever they take.


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04", b"\x00" * 100])
def test_a_damaged_reference_is_refused(content, tmp_path):
    file = tmp_path / "reference.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"reference\.npz' is not the reference of a run"):
        Reference.load(file)


def test_arrays_alone_are_no_reference(tmp_path):
    np.savez(tmp_path / "reference.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="is not the reference"):
        Reference.load(tmp_path / "reference.npz")


def test_outputs_of_quantized_artifacts_are_recorded(network, reference, tmp_path):
    fmt, path = FORMATS["onnx"], tmp_path / "model.onnx"
    fmt.export(network, path, ExportOptions("dynamic"))
    artifact, folder = describe(fmt, "dynamic", path, network), tmp_path / "scratch"
    folder.mkdir()
    (probe,) = reference.probes
    outputs = fmt.load(path, "cpu")(probe.inputs)
    recorded = replace(reference, recorded={"onnx dynamic": outputs})
    recorded.save(tmp_path / "reference.npz")
    back = Reference.load(tmp_path / "reference.npz")
    (output,) = back.verify(artifact, folder).quality.outputs
    assert output.excess.passed
    fmt.rewrite_kernels(path, tmp_path / "other.onnx", lambda _, array: array // 2 * 2)
    other = replace(artifact, path=tmp_path / "other.onnx")
    (output,) = back.verify(other, folder).quality.outputs
    assert not output.excess.passed


def test_half_precision_is_held_to_its_rule_for_processors_compute_it_differently(
    network, reference, tmp_path
):
    fmt, path = FORMATS["onnx"], tmp_path / "model.onnx"
    fmt.export(network, path, ExportOptions("float16"))
    artifact, folder = describe(fmt, "float16", path, network), tmp_path / "scratch"
    folder.mkdir()
    # As if the processor of the run had rounded nothing.
    recorded = {"onnx float16": reference.predictions["test"]}
    verdict = replace(reference, recorded=recorded).verify(artifact, folder)
    assert verdict.passed
    fmt.rewrite_kernels(path, tmp_path / "other.onnx", lambda _, array: 1.05 * array)
    other = replace(artifact, path=tmp_path / "other.onnx")
    assert not replace(reference, recorded=recorded).verify(other, folder).passed


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("probes", []),
        ("probes", [7]),
        ("tolerances", [["test", "scores", "value", {"atol": "1"}]]),
        ("tolerances", [["test", "scores", "value", None]]),
        ("tasks", {"scores": {"classes": "3"}}),
        ("tasks", []),
        ("batch_size", 0),
        ("batch_size", 2**62),
        ("batch_size", None),
        ("name", "../../outside"),
        ("name", None),
        ("inputs", {}),
        ("inputs", {"features": "nothing"}),
        ("outputs", {}),
    ],
)
def test_a_damaged_description_is_refused(reference, tmp_path, part, value):
    file = tmp_path / "reference.npz"
    reference.save(file)
    with np.load(file) as loaded:
        arrays = dict(loaded)
    described = json.loads(arrays["description"].tobytes())
    (described if part in described else described["probes"][0])[part] = value
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(file, **{**arrays, "description": text})
    with pytest.raises(InputError, match="is not the reference of a run"):
        Reference.load(file)
