"""A finished run, proven again on other machines: the scripts ``verify-*``."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import exporter

ROOT = Path(__file__).parents[2]
SCRIPTS, CACHE = ROOT / "scripts", ROOT / "artifacts" / "cache"
VERIFIERS = ("verify-arm64", "verify-versions", "verify-web")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with all variants, of a model with a softmax, whose logarithms are compared too."""
    import keras

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 12))
    y = rng.integers(0, 3, 400)
    x = (centres[y] + rng.normal(size=(400, 12))).astype("float32")
    hidden = keras.layers.Dense(16, activation="relu")
    model = keras.Sequential(
        [keras.Input((12,)), hidden, keras.layers.Dense(3, activation="softmax", name="scores")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, verbose=0)
    folder = tmp_path_factory.mktemp("made") / "run"
    recipe = exporter.Recipe(
        rank=2,
        formats=("tflite", "onnx"),
        quantize=("none", "dynamic", "int8"),
        output=str(folder),
    )
    data = exporter.load_dataset({"x": x, "y": y})
    assert exporter.run(recipe, model=model, dataset=data).passed
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def finished(tmp_path):
    """A folder that looks like that of a run, for what ends before any of it is read."""
    for name in ("manifest.json", "reference.npz"):
        (tmp_path / name).touch()
    return tmp_path


def call(script, *arguments, **environment):
    command = [str(SCRIPTS / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, "COLUMNS": "200", **environment}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment
    )  # fmt: skip


def spoil(run):
    """Exchanges what is stored of outputs, as if the artifacts predicted something else."""
    from exporter.disk import scratch_folder
    from exporter.formats.base import measure
    from exporter.verification.reference import Reference

    file = run / "reference.npz"
    reference = Reference.load(file)
    for outputs in reference.predictions.values():
        for array in outputs.values():
            array[...] = array[:, ::-1]
    with scratch_folder() as folder:
        reference.save(folder / "other.npz")
        shutil.copy(folder / "other.npz", file)
    manifest = json.loads((run / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "reference.npz":
            entry["sha256"] = measure(file)[1]
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("script", VERIFIERS)
def test_what_is_no_run_is_refused(script, tmp_path):
    for arguments in ((), (tmp_path, tmp_path), (tmp_path / "absent",), (tmp_path,)):
        done = call(script, *arguments)
        assert done.returncode == 2, done.stderr
        told = "has no manifest.json" if len(arguments) == 1 else f"usage: scripts/{script} DIR"
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    (tmp_path / "manifest.json").touch()
    assert "has no reference.npz" in call(script, tmp_path).stderr


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "verify-arm64",
            "missing: qemu-aarch64 unshare; on Debian: apt-get install qemu-user util-",
        ),
        ("verify-web", "missing: node npm; on Debian: apt-get install nodejs npm"),
        (
            "arm64",
            "missing: qemu-aarch64 debootstrap gcc unshare; on Debian: apt-get install qemu-",
        ),
    ],
)
def test_a_tool_that_is_missing_is_named(script, told, finished, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    for tool in ("bash", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = call(script, finished, PATH=str(tools))
    assert done.returncode == 2
    assert told in done.stderr
    assert not list(finished.glob("root"))


def test_a_processor_that_is_not_described_is_refused(finished):
    done = call("verify-arm64", finished, PROCESSOR="cortex-m4")
    assert done.returncode == 2
    assert "PROCESSOR is cortex-a76 or cortex-a53, not 'cortex-m4'" in done.stderr


def test_a_version_that_cannot_be_had_is_named(finished):
    done = call("verify-versions", finished, VERSIONS="onnxruntime==0.0.1", PIP_NO_INDEX="1")
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("onnxruntime==0.0.1 cannot be had: ERROR: ")


@pytest.mark.slow
def test_artifacts_predict_the_same_on_arm(run, arm64):
    if not (Path(os.environ["EXPORTER_ARM64"]) / "python").exists():
        pytest.skip("the folder of scripts/arm64 is that of an older version")
    done = call("verify-arm64", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": passed\n") == 6
    spoil(run)
    done = call("verify-arm64", run)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count(": FAILED: ") == 6


@pytest.mark.slow
def test_artifacts_predict_the_same_in_webassembly(run):
    if not (CACHE / "web").is_dir():
        pytest.skip("needs what scripts/verify-web installs when it is asked for")
    done = call("verify-web", run)
    if "npm cannot install" in done.stderr:
        pytest.skip("npm has no registry that has onnxruntime-web")
    assert done.returncode == 0, done.stderr
    hosts = {"node", "chromium"} if shutil.which("chromium") else {"node"}
    assert {line.split()[1] for line in done.stdout.splitlines() if " log scores " in line} == hosts
    assert [line.split()[1] for line in done.stdout.splitlines() if line.endswith(": passed")] == [
        *("model.onnx:", "model-dynamic.onnx:", "model-int8.onnx:")
    ]
    (run / "model-int8.onnx").write_bytes(b"other")
    spoil(run)
    done = call("verify-web", run)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count(": FAILED: ") == 3
    assert "not the file that the run wrote" in done.stdout


@pytest.mark.slow
def test_a_runtime_of_the_web_that_cannot_be_loaded_is_a_verdict(run, tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs Node")
    command = [sys.executable, "-P", SCRIPTS / "web" / "verify.py", run, tmp_path, "node"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert "onnxruntime-web failed in node" in done.stdout
    assert "Cannot find module" in done.stdout
    assert done.stdout.count(": FAILED: ") == 3


@pytest.mark.slow
def test_each_version_gets_a_line(run):
    if not (CACHE / "versions").is_dir():
        pytest.skip("needs what scripts/verify-versions installs when it is asked for")
    done = call("verify-versions", run, VERSIONS="onnxruntime==0.0.1 onnxruntime~=1.31.0")
    missing, found = done.stdout.splitlines()
    assert missing.startswith("onnxruntime==0.0.1 cannot be had: ")
    if "cannot be had" in found:
        pytest.skip("pip has no index that has onnxruntime")
    assert done.returncode == 2
    assert found.startswith("onnxruntime 1.31.")
    assert found.endswith(": 6 of 6 artifacts passed")
    (run / "model.onnx").unlink()
    done = call("verify-versions", run, VERSIONS="onnxruntime~=1.31.0")
    assert done.returncode == 1
    assert done.stdout.endswith(": 5 of 6 artifacts passed; failed: model.onnx\n")
    assert "is not there any more" in done.stderr
