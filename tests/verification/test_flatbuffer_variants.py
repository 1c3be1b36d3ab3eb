"""Honest variants of a flatbuffer pass, in their real runtime; broken ones do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray, write_model

from exporter.formats import FORMATS
from exporter.formats.base import Artifact, ExportOptions, describe
from exporter.graph.network import Network
from exporter.verification.verifier import Verifier

TFLITE = FORMATS["tflite"]
VARIANTS = [variant.name for variant in TFLITE.variants[1:]]


@pytest.fixture
def make(data: Any, tmp_path: Path) -> Callable[..., Artifact]:
    def export(model: Any, variant: str, **options: Any) -> Artifact:
        features = data.train.inputs["features"]
        calibration = [{"features": features[start : start + 64]} for start in range(0, 512, 64)]
        path = tmp_path / "model.tflite"
        given = ExportOptions(variant=variant, calibration=calibration, **options)
        TFLITE.export(Network(model), path, given)
        return describe(TFLITE, variant, path, Network(model))

    return export


@pytest.mark.one_in(3)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_honest_variants_pass(
    variant: str, granularity: str, make: Callable[..., Artifact], compressed: Any, verifier: Any
) -> None:
    verdict = verifier.verify(make(compressed.model, variant, granularity=granularity))
    assert verdict.error is None
    assert verdict.parity is None
    assert verdict.quality.passed, verdict.quality
    assert verdict.structure.passed, verdict.structure
    assert {quality.backend for quality in verdict.quality.outputs} == set(TFLITE.backends)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_integer_interfaces_pass(
    io_type: str, make: Callable[..., Artifact], compressed: Any, verifier: Verifier
) -> None:
    verdict = verifier.verify(make(compressed.model, "int8", io_type=io_type, ranges="mse"))
    assert verdict.passed, verdict


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("variant", "factor"), [("dynamic", 2), ("int8", 2), ("int16x8", 2), ("int4", 4)]
)
def test_a_wrong_scale_fails(
    variant: str, factor: int, make: Callable[..., Artifact], compressed: Any, verifier: Verifier
) -> None:
    artifact = make(compressed.model, variant)
    model = read_model_from_bytearray(artifact.path.read_bytes())
    (kernel,) = [t for t in model.subgraphs[0].tensors if tuple(t.shape) == (128, 12)]
    kernel.quantization.scale = [factor * scale for scale in kernel.quantization.scale]
    write_model(model, str(artifact.path))
    verdict = verifier.verify(artifact)
    assert verdict.error is None
    assert verdict.quality is not None
    assert not verdict.quality.passed, verdict.quality


@pytest.mark.one_in(3)
@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_that_were_multiplied_fail(
    variant: str, make: Callable[..., Artifact], folded: Any, verifier: Verifier
) -> None:
    """They predict the same, but are not what was planned."""
    verdict = verifier.verify(make(folded, variant))
    assert verdict.quality is not None
    assert verdict.quality.passed
    assert verdict.structure is not None
    assert not any(proof.found and proof.dense_gone for proof in verdict.structure.layers)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("variant", ["int8", "int16x8"])
def test_wrong_calibration_fails(
    variant: str, compressed: Any, verifier: Verifier, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.tflite"
    features = np.full((8, 64), 0.01, np.float32)
    options = ExportOptions(variant=variant, calibration=[{"features": features}])
    TFLITE.export(compressed.network, path, options)
    verdict = verifier.verify(describe(TFLITE, variant, path, compressed.network))
    assert verdict.quality is not None
    assert not verdict.quality.passed
