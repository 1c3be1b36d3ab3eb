"""The noise of quantized artifacts, beside that of rounding them anew."""

from dataclasses import replace

import numpy as np
import pytest

from exporter.card import ModelCard
from exporter.commands.artifact import ArtifactWriter, quantization_samples
from exporter.data import load_dataset
from exporter.formats import FORMATS
from exporter.formats.base import describe
from exporter.recipe import Recipe
from exporter.verification.probes import Probe
from exporter.verification.rounding import MOST_SAMPLES, _excess, excess_over, rounding_probe
from scripts.bench.lib.faults import faults

QUANTIZED = [(name, variant) for name in ("tflite", "onnx") for variant in ("dynamic", "int8")]


@pytest.fixture(scope="module")
def written(compressed, data, tmp_path_factory):
    """Returns a function that quantizes the classifier and describes the artifact."""
    made = {}

    def write(name, variant):
        if (name, variant) not in made:
            fmt, folder = FORMATS[name], tmp_path_factory.mktemp(name)
            recipe = Recipe(formats=(name,), quantize=(variant,), granularity="channel")
            samples = quantization_samples(recipe, compressed.network, data)
            writer = ArtifactWriter(recipe, compressed, samples, ModelCard())
            path = folder / f"model{fmt.suffix}"
            writer.write(fmt, variant, path, folder)
            made[name, variant] = describe(fmt, variant, path, compressed.network)
        return made[name, variant]

    return write


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("name", "variant"), QUANTIZED)
def test_rounding_explains_the_noise_of_an_artifact(name, variant, written, verifier):
    verdict = verifier.verify(written(name, variant))
    assert verdict.passed
    (excess,) = [o.excess for o in verdict.quality.outputs if o.excess]
    # The draws add noise to kernels that were rounded: no more than twice that of the artifact.
    assert -6 < excess.total <= 2


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("name", "variant"), QUANTIZED)
def test_a_fault_is_noise_that_rounding_does_not_explain(
    name, variant, written, verifier, tmp_path
):
    artifact = written(name, variant)
    broken = dict(faults(artifact.path.suffix, artifact.path.read_bytes(), seed=0))
    for fault in ("rows of a kernel permuted", "channel of a kernel negated"):
        path = tmp_path / artifact.path.name
        path.write_bytes(broken[fault])
        verdict = verifier.verify(replace(artifact, path=path))
        assert not verdict.passed, fault
        assert any(not o.excess.passed for o in verdict.quality.outputs if o.excess), fault


def test_a_mild_fault_is_within_the_limits_of_the_variant_and_is_found(written, verifier, tmp_path):
    """The limits allow an SNR of 18 dB, whatever the model is."""
    artifact = written("tflite", "dynamic")
    path = tmp_path / "model.tflite"

    def shrink(name, kernel):
        del name
        return (kernel * 0.97).astype(np.int8)

    FORMATS["tflite"].rewrite_kernels(artifact.path, path, shrink)
    (output,) = [
        o for o in verifier.verify(replace(artifact, path=path)).quality.outputs if o.excess
    ]
    assert output.snr_db > 18
    assert output.top1_agreement > 0.97
    assert output.excess.total > output.excess.limit


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("name", "variant"), [*QUANTIZED, ("ort", "int8"), ("c", "int8"), ("tflite", "int4")]
)
def test_kernels_alone_are_rewritten(name, variant, written, installed, tmp_path):
    fmt, kernels = installed(name), {}
    artifact = written(name, variant)

    def flip(kernel_name, array):
        kernels[kernel_name] = array.copy()
        return -array if array.dtype.kind == "i" else 255 - array

    once, twice = tmp_path / f"once{fmt.suffix}", tmp_path / f"twice{fmt.suffix}"
    fmt.rewrite_kernels(artifact.path, once, flip)
    assert sum(array.size for array in kernels.values()) >= 64 * 12
    fmt.rewrite_kernels(once, twice, flip)
    before, after, changed = (
        {tensor.name: tensor.digest for tensor in fmt.stored_tensors(path)}
        for path in (artifact.path, twice, once)
    )
    assert before == after
    assert {key for key in before if before[key] != changed[key]} == set(kernels)


def test_a_format_without_quantized_variants_says_so(tmp_path):
    from exporter.errors import ConversionError

    with pytest.raises(ConversionError, match="is not quantized"):
        FORMATS["saved_model"].rewrite_kernels(tmp_path, tmp_path / "other", lambda _, array: array)


def test_the_probe_has_the_samples_that_ranges_cover(classifier, data):
    from exporter.graph.network import Network

    network, first = Network(classifier), Probe("test", {"features": np.zeros((9, 64))}, 4)
    probe = rounding_probe(network, data, first, calibration=100)
    assert (len(probe), probe.batch_size) == (100, 4)
    np.testing.assert_array_equal(probe.inputs["features"], data.train.inputs["features"][:100])
    assert len(rounding_probe(network, data, first, calibration=10_000)) == MOST_SAMPLES
    assert rounding_probe(network, load_dataset("none"), first, calibration=100) is first


def test_noise_is_held_against_what_was_recorded():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(50, 4))
    recorded = expected + 0.01 * rng.normal(size=(50, 4))
    same = excess_over(recorded, recorded, expected)
    assert (same.total, same.passed) == (0.0, True)
    assert same.expected_snr_db == pytest.approx(40, abs=1)
    shifted = recorded.copy()
    shifted[:, 2] += 0.015
    fault = excess_over(recorded, shifted, expected)
    assert fault.channel > 3
    assert not fault.passed
    assert not excess_over(recorded, np.full_like(recorded, np.nan), expected).passed


def test_the_steps_of_an_output_are_expected():
    """In integers all but certain probabilities are 0 and 255/256, however kernels are rounded."""
    certain = np.eye(4)[np.arange(40) % 4]
    values = np.round(certain * 255) / 256
    unmoved = np.zeros((6, 4))
    assert _excess(values, certain, unmoved).passed
    assert not _excess(values[::-1], certain, unmoved).passed
