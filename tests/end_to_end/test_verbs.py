"""The verbs of the command line, one after the other, as processes."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

COMMANDS = {
    "compress": ["compress", "small.keras", "--data=data.npz", "--rank=4", "--output=cut"],
    "compress again": ["compress", "small.keras", "--rank=4", "--output=cut"],
    "compress beside": [
        "compress", "small.keras", "--rank=4", "--data=none", "--output=beside", "--force",
    ],
    "compress nothing": ["compress", "small.keras", "--rank=none", "--data=none", "--output=whole"],
    "export": [
        "--format=tflite,onnx", "export", "cut/compressed.keras", "--data=data.npz",
        "--quantize=none,int8", "--output=out", "--calibration=32",
    ],
    "export json": ["export", "cut/compressed.keras", "--output=json", "--json"],
    "verify": ["verify", "out/model.tflite", "cut/compressed.keras", "--data=data.npz"],
    "verify int8": ["verify", "out/model-int8.onnx", "cut/compressed.keras", "--data=data.npz"],
    "verify another": ["--json", "verify", "out/model.onnx", "small.keras"],
    "verify nothing": ["verify", "nothing.tflite", "small.keras"],
    "inspect": ["--json", "inspect", "small.keras", "--data=none"],
    "become ascii": "sys.stdout.reconfigure(encoding='ascii', errors='strict')",
    "inspect in ascii": ["inspect", "small.keras", "--data=none"],
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(30, activation="relu", bias_initializer="normal", name="hidden"),
        keras.layers.Dense(3, activation="softmax", bias_initializer="normal", name="out"),
    ]
    model = keras.Sequential([keras.Input((24,), name="x"), *layers], name="small")
    model.save(folder / "small.keras")
    (folder / "beside").mkdir()
    (folder / "beside" / "model.tflite").write_text("mine")
    rng = np.random.default_rng(0)
    x = rng.random((80, 24))
    np.savez(folder / "data.npz", x=x, y=model.predict(x, verbose=0).argmax(axis=1))
    return folder


@pytest.fixture(scope="module")
def outcomes(workplace, run_each):
    names = [name for name, arguments in COMMANDS.items() if isinstance(arguments, list)]
    return dict(zip(names, run_each(list(COMMANDS.values()), cwd=workplace), strict=True))


@pytest.mark.parametrize(
    ("name", "code"), [(n, {"verify another": 1}.get(n, 0)) for n in COMMANDS if " " not in n]
)
def test_each_verb_ends_as_documented(outcomes, name, code):
    assert outcomes[name].returncode == code, outcomes[name].stderr


def test_compress_saves_a_keras_model_and_says_what_is_next(outcomes, workplace):
    model = keras.models.load_model(workplace / "cut" / "compressed.keras")
    assert model.count_params() == 4 * (24 + 30) + 30 + 30 * 3 + 3
    assert "exporter export cut/compressed.keras" in outcomes["compress"].stdout
    assert {path.name for path in (workplace / "cut").iterdir()} == {"compressed.keras"}


def test_compress_says_that_it_compressed_nothing(outcomes):
    done = outcomes["compress nothing"]
    assert done.returncode == 0, done.stderr
    assert "NOTHING WAS COMPRESSED" in done.stdout


def test_compress_keeps_what_is_there(outcomes):
    assert outcomes["compress again"].returncode == 2
    assert "--force" in outcomes["compress again"].stderr


def test_compress_replaces_only_what_it_writes(outcomes, workplace):
    assert outcomes["compress beside"].returncode == 0, outcomes["compress beside"].stderr
    assert (workplace / "beside" / "model.tflite").read_text() == "mine"
    assert (workplace / "beside" / "compressed.keras").exists()


def test_export_lists_what_it_wrote(outcomes, workplace):
    names = ["model.tflite", "model-int8.tflite", "model.onnx", "model-int8.onnx"]
    assert {path.name for path in (workplace / "out").iterdir()} == set(names)
    for name in names:
        assert f"out/{name}" in outcomes["export"].stdout
    (artifact,) = json.loads(outcomes["export json"].stdout)
    file = workplace / artifact["path"]
    assert artifact["size"] == file.stat().st_size


def test_verify_tells_the_model_from_another(outcomes):
    assert "passed" in outcomes["verify"].stdout
    assert outcomes["verify int8"].returncode == 0
    assert "SNR" in outcomes["verify int8"].stdout
    assert outcomes["verify another"].returncode == 1
    assert json.loads(outcomes["verify another"].stdout)["passed"] is False
    assert outcomes["verify nothing"].returncode == 2
    assert "does not exist" in outcomes["verify nothing"].stderr


def test_inspect_prints_json_wherever_the_option_stands(outcomes):
    assert json.loads(outcomes["inspect"].stdout)["model_name"] == "small"


def test_a_terminal_of_ascii_is_no_failure(outcomes):
    done = outcomes["inspect in ascii"]
    assert done.returncode == 0, done.stderr
    assert "hidden" in done.stdout
    assert " x " in done.stdout
    assert "?" not in done.stdout


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_is_no_failure(workplace):
    command = [sys.executable, "-m", "exporter", "inspect", "small.keras", "--data=none"]
    with subprocess.Popen(
        command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # As head does, when it has seen enough.
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


@pytest.mark.parametrize(
    ("model", "code"),
    [pytest.param("small.keras", 0, marks=pytest.mark.slow), ("nowhere.keras", 2)],
)
def test_streams_that_are_closed_are_no_failures(workplace, model, code):
    command = [sys.executable, "-m", "exporter", "inspect", model, "--data=none"]
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closing, cwd=workplace, check=False).returncode == code
