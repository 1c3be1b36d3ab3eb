"""The code that a report gives: it runs, where its runtime is here."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from exporter.report.page.drawing import environment
from exporter.report.page.snippets import snippets
from exporter.verification.reference import Reference


@pytest.fixture(scope="module")
def manifest(drawn):
    return json.loads((drawn.output / "manifest.json").read_text())


def code(artifact, manifest, language):
    found = {each.language: each.code for each in snippets(artifact, manifest, environment())}
    return found[language]


def test_python_predicts_what_the_run_predicted_from_raw_values(drawn, manifest, monkeypatch):
    monkeypatch.chdir(drawn.output)
    reference = Reference.load(drawn.output / "reference.npz")
    probe = next(probe for probe in reference.probes if probe.name == "test")
    raw = np.round(probe.inputs["image"] * 255)
    expected = reference.predictions["test"]["probabilities"]
    batches = {"float32": 1e-5, "int8": 0.2}
    assert len(manifest["artifacts"]) == 4
    for artifact in manifest["artifacts"]:
        names = {}
        exec(code(artifact, manifest, "Python"), names)
        predicted = names["predict"](raw)["probabilities"]
        assert np.abs(predicted - expected).max() < batches[artifact["variant"]]


@pytest.fixture
def odd(manifest):
    """A manifest whose inputs have channels in reverse, awkward names, and free sizes."""
    tensors = [
        {"name": 'image "$x"', "shape": [None, 4, 4, 3], "dtype": "uint8",
         "quantization": {"scale": 0.5, "zero_point": 3}},
        {"name": "image__x", "shape": [None, None], "dtype": "int64", "quantization": None},
        {"name": "7th", "shape": [None, 2], "dtype": "float32", "quantization": None},
    ]  # fmt: skip
    channels = {"mean": [1.0, 2.0, 3.0], "std": 2, "reverse_channels": True}
    card = {**manifest["card"], "normalization": {'image "$x"': channels}}
    first = manifest["artifacts"][0]
    file = {**first["file"], "inputs": tensors, "outputs": [{**tensors[0], "name": "out"}]}
    return {**first, "file": file}, {**manifest, "card": card}


@pytest.mark.parametrize("fmt", ["tflite", "onnx", "saved_model", "c"])
def test_python_parses_whatever_the_names_are(fmt, odd):
    artifact, manifest = odd
    for each in snippets({**artifact, "format": fmt}, manifest, environment()):
        assert "image" in each.code
        if each.language == "Python":
            compile(each.code, "snippet", "exec")
            assert '"image \\"$x\\""' in each.code
            assert "[..., ::-1]" in each.code
        if each.language == "Kotlin":
            assert '"image \\"\\$x\\""' in each.code


@pytest.mark.parametrize("fmt", ["tflite", "onnx"])
def test_javascript_parses(fmt, odd, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    artifact, manifest = odd
    file = tmp_path / "snippet.mjs"
    file.write_text(code({**artifact, "format": fmt}, manifest, "JavaScript"))
    subprocess.run(["node", "--check", file], check=True)


STUB = """
#include <stddef.h>
typedef struct TfLiteModel TfLiteModel; typedef struct TfLiteTensor TfLiteTensor;
typedef struct TfLiteInterpreter TfLiteInterpreter; enum { kTfLiteOk };
TfLiteModel* TfLiteModelCreateFromFile(const char*);
TfLiteInterpreter* TfLiteInterpreterCreate(const TfLiteModel*, const void*);
int TfLiteInterpreterAllocateTensors(TfLiteInterpreter*);
int TfLiteInterpreterInvoke(TfLiteInterpreter*);
TfLiteTensor* TfLiteInterpreterGetInputTensor(const TfLiteInterpreter*, int);
const TfLiteTensor* TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter*, int);
void* TfLiteTensorData(const TfLiteTensor*);
int TfLiteTensorCopyToBuffer(const TfLiteTensor*, void*, size_t);
"""


def test_c_compiles(odd, manifest, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    header = tmp_path / "tensorflow" / "lite" / "c" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text(STUB)
    for artifact, known in (odd, (manifest["artifacts"][0], manifest)):
        file = tmp_path / "snippet.c"
        file.write_text(code({**artifact, "format": "tflite"}, known, "C"))
        subprocess.run(
            [compiler, "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", tmp_path, file],
            check=True,
        )
