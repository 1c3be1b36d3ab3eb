"""A finished run, proven again by whoever receives it."""

import json
import os
import shutil
import subprocess

import pytest

import exporter
from exporter.cli import main
from exporter.commands.verify import verify_stored
from exporter.errors import InputError
from exporter.verification.reference import in_all_backends


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    recipe = exporter.Recipe(
        rank=2,
        formats=("tflite", "onnx"),
        quantize=("none", "dynamic"),
        data="none",
        output=str(folder),
    )
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3, name="scores")]
    assert exporter.run(recipe, model=keras.Sequential([keras.Input((12,)), *layers])).passed
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def verified(capfd, *arguments):
    code = main(["verify", *map(str, arguments), "--json"])
    printed = capfd.readouterr()
    values = json.loads(printed.out)
    return code, values.get("error", values)


def test_a_run_passes_as_it_was_written(run, capfd):
    code, verdicts = verified(capfd, run)
    assert code == 0
    assert set(verdicts) == {
        *("model.tflite", "model-dynamic.tflite", "model.onnx", "model-dynamic.onnx")
    }
    assert all(verdict["passed"] for verdict in verdicts.values())
    assert verdicts["model.tflite"]["parity"]["comparisons"]
    assert verdicts["model-dynamic.onnx"]["quality"]["outputs"]


def test_another_runtime_is_judged_alike(run):
    def wrong(artifact, probes, folder):
        outputs = in_all_backends(artifact, probes, folder)["cpu"]
        return {"other": {name: {"scores": -each["scores"]} for name, each in outputs.items()}}

    reports = verify_stored(str(run), formats=("onnx",), run=wrong)
    assert [report.label for report in reports] == ["model.onnx", "model-dynamic.onnx"]
    assert {each.backend for each in reports[0].conversion.parity.comparisons} == {"other"}
    assert not any(report.accepted for report in reports)
    with pytest.raises(InputError, match="tells of no artifact of the formats c like"):
        verify_stored(str(run), formats=("c",), run=wrong)


def test_a_run_does_not_fall_behind_itself_but_behind_one_with_more(run, made, capfd):
    assert main(["compare", str(made), str(run / "manifest.json"), "--max-slowdown=0%"]) == 0
    artifacts = json.loads((run / "manifest.json").read_text())["artifacts"]
    rewrite(run, artifacts=artifacts[1:])
    assert main(["compare", str(made), str(run)]) == 1
    assert "model.tflite: FAILED; it is missing in the new run" in capfd.readouterr().out


def test_another_file_in_its_place_fails(run, capfd):
    (run / "model.tflite").write_bytes((run / "model.tflite").read_bytes() + b"trailing")
    (run / "model.onnx").unlink()
    code, verdicts = verified(capfd, run)
    assert code == 1
    assert "not the file that the run wrote" in verdicts["model.tflite"]["error"]
    assert "is not there any more" in verdicts["model.onnx"]["error"]
    assert verdicts["model-dynamic.tflite"]["passed"]


def test_a_file_that_came_back_is_judged_by_what_it_predicts(run, capfd, tmp_path):
    back = tmp_path / "back-dynamic.tflite"
    back.write_bytes((run / "model-dynamic.tflite").read_bytes() + b"trailing")
    code, verdicts = verified(capfd, back, "--against", run / "manifest.json")
    assert (code, list(verdicts)) == (0, ["back-dynamic.tflite"])
    back.write_bytes(back.read_bytes()[:-2000])
    code, verdicts = verified(capfd, back, "--against", run / "manifest.json")
    assert code == 1
    assert verdicts["back-dynamic.tflite"]["error"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "reference.npz").unlink(), "is not the reference"),
        (lambda run: (run / "reference.npz").write_bytes(b"other"), "is not the reference"),
        (lambda run: (run / "manifest.json").write_text("{"), "is not the manifest of a run"),
        (lambda run: (run / "manifest.json").write_text("[]"), "without the lists 'files' and"),
        (lambda run: rewrite(run, files=[1]), "without the lists 'files' and 'artifacts'"),
        (lambda run: (run / "manifest.json").unlink(), "is not the manifest of a run"),
        (lambda run: rewrite(run, schema_version=99), "schema version of at most"),
        (lambda run: rewrite(run, artifacts=[]), "tells of no artifact"),
        (lambda run: rewrite(run, artifacts=[{"accepted": True}]), "unknown artifact"),
        (lambda run: moved(run, "../../secret"), "are in its folder"),
    ],
)
def test_a_damaged_run_is_refused(damage, told, run, capfd):
    damage(run)
    code, message = verified(capfd, run)
    assert code == 2
    assert told in message


def rewrite(run, **changes):
    file = run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def moved(run, path):
    artifacts = json.loads((run / "manifest.json").read_text())["artifacts"]
    artifacts[0]["file"]["path"] = path
    rewrite(run, artifacts=artifacts)


def test_what_needs_the_model_is_refused_without_it(run, capfd):
    code, message = verified(capfd, run, "--atol", "1")
    assert code == 2
    assert "Without a Keras model, verify takes no atol" in message
    code, message = verified(capfd, run, "model.keras", "--against", run / "manifest.json")
    assert code == 2
    assert "not both" in message


@pytest.mark.slow
def test_the_runtime_alone_is_enough(run, bare):
    def call(*arguments):
        command = [bare.python, "-P", *map(str, arguments)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env=bare.environment
        )

    assert "No module named" in call("-c", "import tensorflow").stderr
    against = ("--against", run / "manifest.json")
    done = call("-m", "exporter", "verify", run / "model.tflite", *against)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    done = call("-m", "exporter", "verify", run)
    assert done.returncode == 1
    assert "No module named 'onnxruntime'" in done.stdout
    done = call("-m", "exporter", "benchmark", run)
    assert done.returncode == 0, done.stderr
    assert "model-dynamic.tflite" in done.stdout
    assert "model.onnx: skipped, for its runtime is not installed" in done.stdout


@pytest.mark.parametrize(
    ("name", "code"), [("manifest.json", 2), ("reference.npz", 2), ("model.tflite", 2)]
)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(name, code, run, capfd):
    (run / name).unlink()
    os.mkfifo(run / name)
    found, told = verified(capfd, run)
    assert found == code
    assert name in told
    assert "Traceback" not in told


def test_a_publication_that_was_killed_is_finished(made, run, capfd):
    staging = run / ".staging-abcd1234"
    (staging / ".former").mkdir(parents=True)
    (run / "manifest.json").rename(staging / "manifest.json")
    (run / "model.onnx").rename(staging / "model.onnx")
    (staging / ".journal").write_text(json.dumps({"former": ["manifest.json"]}))
    code, verdicts = verified(capfd, run)
    assert code == 0
    assert len(verdicts) == 4
    assert {path.name for path in run.iterdir()} == {path.name for path in made.iterdir()}
