"""The verb ``doctor`` where packages are missing, too old, or broken; each as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def doctor(python, environment, *options):
    command = [python, "-P", "-m", "exporter", "doctor", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_without_tensorflow_runtimes_are_loaded_and_what_is_missing_is_told(bare):
    done = doctor(bare.python, bare.environment, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    told = {trial["name"]: trial["told"] for trial in found["formats"]}
    assert {trial["state"] for trial in found["formats"]} == {"missing"}
    for name in ("saved_model", "tflite", "onnx", "ort"):
        assert "not converted here: TensorFlow is missing" in told[name]
    assert "Its runtime loads" in told["tflite"]
    assert "its runtime, onnxruntime" in told["onnx"]
    assert "-m pip install tflite-micro" in told["c"]
    assert "'tensorflow>=2.21,<2.22'" in found["install"]
    assert "numpy" not in found["install"]


def test_a_package_of_another_version_is_a_failure(bare):
    described = bare.site / "h5py-2.0.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: h5py\nVersion: 2.0.0\n")
    done = doctor(bare.python, bare.environment)
    assert done.returncode == 1
    [row] = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["h5py"]]
    assert row == ["h5py", "2.0.0", ">=3.14,<4", "does", "not", "fit"]
    assert "NOT ALL" in done.stdout
    # The path of the interpreter, which is in the last command, is as long as it is.
    others = [line for line in done.stdout.splitlines() if str(bare.python) not in line]
    assert max(map(len, others)) <= 80


@pytest.mark.parametrize(
    ("verb", "removed", "module"), [("inspect", (), "keras"), ("doctor", ("rich",), "rich")]
)
def test_what_needs_a_package_that_is_missing_names_it(verb, removed, module, bare, tmp_path):
    for name in removed:
        (bare.site / name).unlink()
    command = [bare.python, "-P", "-m", "exporter", verb]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=bare.environment
    )
    assert done.returncode == 2
    assert f"the module {module!r}, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise ImportError('libcuda.so.9 is no ELF file')", "libcuda.so.9 is no ELF file"),
    ],
)
def test_a_tensorflow_that_cannot_be_imported_is_a_failure(code, told, tmp_path):
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = doctor(sys.executable, environment, "--json")
    assert done.returncode == 1
    for trial in json.loads(done.stdout)["formats"]:
        assert trial["state"] == "missing" or told in trial["told"]
        assert trial["name"] == "c" or trial["state"] == "fails"
