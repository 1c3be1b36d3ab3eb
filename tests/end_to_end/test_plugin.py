"""The example of a package that extends this one, installed as pip would, from end to end."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import keras
import numpy as np
import pytest

from exporter.report.manifest import manifest_schema

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that finds the package, built as it is and unpacked."""
    folder = tmp_path_factory.mktemp("plugin")
    source, site = folder / "source", folder / "site"
    shutil.copytree(ROOT / "tests" / "plugin", source)
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-P", "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def save_model(folder):
    """Writes a model with the layer, and data that it is right about."""
    # Not imported as a module, so that only its own package makes it known to exporter.
    layer = runpy.run_path(str(ROOT / "tests" / "plugin" / "exporter_example" / "layers.py"))
    made = layer["ScaledDense"](40, use_bias=False, name="scaled")
    made.__class__.__module__ = "exporter_example.layers"
    del keras.saving.get_custom_objects()["exporter_example>ScaledDense"]
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            made,
            layers.BatchNormalization(),  # The format does not know it: it must be folded.
            layers.Activation("relu"),
            layers.Dense(3, activation="softmax", bias_initializer="normal", name="out"),
        ],
        name="mine",
    )
    model.save(folder / "mine.keras")
    x = np.random.default_rng(0).random((300, 6, 6, 1), "float32")
    y = model.predict(x, verbose=0).argmax(1)
    parts = {"x_train": x[:200], "y_train": y[:200], "x_test": x[200:], "y_test": y[200:]}
    np.savez(folder / "mine.npz", **parts)


@pytest.fixture(scope="module")
def finished(installed, run_each, tmp_path_factory):
    """The folder of a run with the format and the layer, and what commands printed."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder)
    (folder / "mine.yaml").write_text("export: {formats: [numpy]}\n")
    run = ["mine.keras", "--data", "mine.npz", "--rank", "4", "--output", "out"]
    commands = [
        [*run, "--recipe", "mine.yaml", "--json"],
        ["verify", "out", "--json"],
        ["benchmark", "out", "--json"],
        ["recipe", "study", "--format", "all", "--json"],
    ]
    outcomes = run_each(commands, folder, PYTHONPATH=installed["PYTHONPATH"])
    assert [each.returncode for each in outcomes] == [0] * 4, [each.stderr for each in outcomes]
    return folder, [each.stdout for each in outcomes]


def test_a_format_of_another_package_is_proven_in_its_own_runtime(finished):
    report, verdicts, timed, recipe = map(json.loads, finished[1])
    (artifact,) = report["artifacts"]
    parity = artifact["conversion"]["parity"]
    assert parity["passed"]
    assert {each["backend"] for each in parity["comparisons"]} == {"numpy"}
    assert artifact["conversion"]["structure"]["passed"]
    assert artifact["latency"]["speedup"] > 0
    assert artifact["accepted"] and artifact["file"]["path"] == "model.numpy"
    assert [verdict["passed"] for verdict in verdicts.values()] == [True]
    assert timed["timed"][0]["runtime"] == "numpy"
    assert recipe["export"]["formats"][-1] == "numpy"


def test_a_layer_of_another_package_is_factorized(finished):
    layers = json.loads(finished[1][0])["layers"]
    (layer,) = [each for each in layers if each["name"] == "scaled"]
    assert (layer["kind"], layer["rank"]) == ("ScaledDense", 4)
    assert layer["params_after"] == 64 * 4 + 4 * 40 + 40


def test_the_manifest_follows_the_schema_and_names_the_package(finished):
    manifest = json.loads((finished[0] / "out" / "manifest.json").read_text())
    jsonschema.validate(manifest, manifest_schema())
    assert manifest["versions"]["exporter-example"] == "1.2"
    assert "model.numpy" in (finished[0] / "out" / "report.md").read_text()


def test_without_the_package_a_run_is_drawn_and_not_verified(finished, run_each, tmp_path):
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    drawn, verified = run_each([["report", "out"], ["verify", "out"]], tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert verified.returncode == 2
    assert "Received: 'numpy' in" in verified.stderr
    assert "Install the package that adds this format" in verified.stderr


def test_help_lists_the_format(installed):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "exporter", "--help"],
        env=installed, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "  numpy        none\n" in done.stdout


@pytest.mark.slow
def test_doctor_tries_the_format_and_tells_of_what_cannot_be_used(installed, tmp_path):
    described = tmp_path / "broken-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[exporter.formats]\nlost = no_such_module:Lost\n")
    both = {**installed, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "exporter", "doctor", "--json"],
        env=both, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    formats = {each["name"]: each for each in found["formats"]}
    assert formats["numpy"] == {"name": "numpy", "state": "works", "told": "in numpy"}
    states = [(each["name"], each["state"]) for each in found["plugins"]]
    assert sorted(states) == [("broken 1.0", "fails"), *[("exporter-example 1.2", "works")] * 3]
    assert any("No module named 'no_such_module'" in each["told"] for each in found["plugins"])
