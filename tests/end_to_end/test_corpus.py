"""Whole runs on the corpus of small architectures."""

import importlib.util
import sys
from pathlib import Path

import pytest

from exporter.commands.alternative import Alternatives
from exporter.errors import ConversionError

_SPEC = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
corpus = sys.modules["corpus"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(corpus)
SMALL = [name for name, each in corpus.CORPUS.items() if not each.large]
# Each takes some seven seconds of one core; `scripts/benchmark corpus` runs all.
TESTED = [name for number, name in enumerate(SMALL) if number % 3]


def test_the_corpus_is_large_and_limits_name_artifacts():
    assert len(TESTED) >= 60
    artifacts = {"saved_model", "tflite", "tflite int8", "onnx", "onnx int8"}
    assert all(set(each.limits) <= artifacts for each in corpus.CORPUS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_artifacts_are_accepted_or_the_known_limit_is_told(name, tmp_path, monkeypatch):
    def write(*_):
        raise ConversionError("The uncompressed network, half of the time, is not looked at here.")

    monkeypatch.setattr(Alternatives, "write", write)
    limits = corpus.CORPUS[name].limits
    verdicts = corpus.verdicts(corpus.run(name, tmp_path / "run"))
    assert len(verdicts) == 5
    for artifact, reason in verdicts.items():
        known = limits.get(artifact)
        if reason:
            assert known and known in reason, f"{artifact}: {reason}"
        elif known is not None:
            # Signal to noise ratios differ by a little between kernels for different CPUs.
            measured = {corpus.QUALITY, corpus.DEPARTS}
            assert known in measured, f"{artifact} meets its limit no more; strike it"
