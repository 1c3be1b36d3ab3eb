"""Whole runs of the command line, as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from exporter.formats.base import measure

CHATTER = ("WARNING", "I0000", "E0000", "oneDNN", "cuda", "absl", "Traceback", "Warning", "INFO")
BASELINE_PARAMS, COMPRESSED_PARAMS = 5_012_490, 215_370


def command(*arguments):
    return [sys.executable, "-m", "exporter", *arguments]


def run(*arguments, cwd, **kwargs):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, cwd=cwd, **kwargs
    )


CACHED = "artifacts/cache/"


def snapshot(folder):
    """Returns the content of all files; the cache may grow."""
    files = {
        str(path.relative_to(folder)): path
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
    return {n: path.read_bytes() for n, path in files.items() if not n.startswith(CACHED)}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a small model, and data that fit."""
    import keras

    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6), name="image"),
            layers.Flatten(),
            layers.Dense(40, activation="relu", bias_initializer="normal", name="hidden"),
            layers.Dense(3, activation="softmax", bias_initializer="normal", name="out"),
        ],
        name="small",
    )
    model.save(folder / "small.keras")
    model.save(folder / "small.h5")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6, 6))
    y = model.predict(x, verbose=0).argmax(axis=1)
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "calibration.npz", x=x)
    np.savez(folder / "shape.npz", x=x[:, :5])
    np.savez(folder / "object.npz", x=np.array([{}, 1], dtype=object))
    np.savez(folder / "nan.npz", x=np.where(x > 0.9, np.nan, x))
    np.savez(folder / "empty.npz", x=x[:0])
    np.savez(folder / "labels.npz", x=x, y=y + 2)
    (folder / "text.keras").write_text("not a model")
    (folder / "two.txt").write_text("ant\nbee\n")
    for suffix in ("keras", "h5"):
        content = (folder / f"small.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(content[: len(content) // 2])
    keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x), layers.Dense(4)]).save(
        folder / "lambda.keras"
    )
    (folder / "file").write_text("mine")
    return folder


@pytest.mark.slow
def test_main_job_keeps_its_promises(tmp_path):
    job = ("--rank", "20", "--format", "saved_model,tflite,onnx")
    dry = run(*job, "--dry-run", "--json", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert list(tmp_path.iterdir()) == []
    expected = {each["name"]: each["size"] for each in json.loads(dry.stdout)["artifacts"]}
    first = run(*job, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "artifacts" / "reference-mlp-rank20"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["totals"]["before"]["params"] == BASELINE_PARAMS
    assert manifest["totals"]["after"]["params"] == COMPRESSED_PARAMS
    (output,) = manifest["compression"]["outputs"]
    assert output["baseline"]["value"] >= 0.945
    assert (folder / "model.tflite").stat().st_size <= 870_000
    assert (folder / "baseline.keras").exists()
    for artifact in manifest["artifacts"]:
        assert artifact["accepted"]
        assert artifact["conversion"]["structure"]["passed"]
        file = artifact["file"]
        assert expected[file["path"]] == pytest.approx(file["size"], rel=0.1)
        # What the artifact itself scores is what its Keras model scores.
        assert artifact["conversion"]["metrics"]["probabilities"] == output["compressed"]
    backends = {
        c["backend"] for c in manifest["artifacts"][1]["conversion"]["parity"]["comparisons"]
    }
    assert backends == {"xnnpack", "reference"}
    for text in (first.stdout, first.stderr):
        assert not [word for word in CHATTER if word in text]
    assert "validation accuracy" in first.stdout
    assert "scaled to [0, 1]" in first.stderr

    again = run(
        f"--recipe={folder}/recipe.yaml", "--format=tflite,onnx", "--output=again", "--json",
        "--no-report", cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["training"]["cached"] is True
    for name in ("model.tflite", "model.onnx"):
        assert measure(tmp_path / "again" / name) == measure(folder / name)


BAD_INPUT = {
    "missing model": (["nothing.keras"], "does not exist"),
    "text as model": (["text.keras"], "zip archive"),
    "truncated keras": (["truncated.keras"], "truncated"),
    "truncated h5": (["truncated.h5"], "truncated"),
    "lambda": (["lambda.keras"], "Lambda"),
    "folder as model": (["former"], r".keras or .h5"),
    "wrong shape": (["small.keras", "--data=shape.npz"], "(6, 6)"),
    "objects": (["small.keras", "--data=object.npz"], "object"),
    "nan": (["small.keras", "--data=nan.npz"], "NaN"),
    "empty": (["small.keras", "--data=empty.npz"], "hold samples"),
    "labels": (["small.keras", "--data=labels.npz"], "0 and 2"),
    "labels of other classes": (
        ["small.keras", "--data=good.npz", "--labels=two.txt"],
        "(out has 3)",
    ),
    "missing labels": (
        ["small.keras", "--data=good.npz", "--labels=nothing.txt"],
        "one label a line",
    ),
    "missing data": (["small.keras", "--data=nothing.npz"], "not found"),
    "rank 0": (["small.keras", "--rank=0"], ">= 1"),
    "rank -1": (["small.keras", "--rank=-1"], ">= 1"),
    "rank abc": (["small.keras", "--rank=abc"], "'abc'"),
    "rank too large": (["small.keras", "--data=good.npz", "--rank=37"], "hidden (36 x 40)"),
    "unknown layer": (["small.keras", "--data=good.npz", "--rank=no=3"], "hidden (36 x 40)"),
    "unknown format": (["small.keras", "--format=onnx,pb"], "Known: saved_model"),
    "output is a file": (["small.keras", "--output=file"], "must be a folder"),
    "output in a file": (
        ["small.keras", "--output=file/run"],
        "must be a folder. Received: the file 'file'",
    ),
    "former run": (["small.keras", "--data=good.npz", "--output=former"], "--force"),
}


FORMER = ["small.keras", "--data=good.npz", "--rank=12", "--output=former"]
STRICT = ["small.keras", "--data=good.npz", "--rank=5", "--atol=0", "--output=strict"]
KEEP_FORMER = "import shutil; shutil.copytree('former', 'as_it_was')"

FILL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# No file may grow beyond 4 KB, as on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


# The signals come while the second artifact is half written.
INTERRUPT = """
import os, signal
from exporter.commands.run import _Exports
write = _Exports.write
sign, first = signal.SIGINT, "onnx"
def interrupted(self, fmt, variant):
    if fmt.name == first:
        (self._staging / f"model{fmt.suffix}").write_text("half")
        os.kill(os.getpid(), sign)
    return write(self, fmt, variant)
_Exports.write = interrupted
"""
PARTIAL = ["small.keras", "--data=good.npz", "--rank=2", "--format=tflite,onnx"]


@pytest.fixture(scope="module")
def keras_home(tmp_path_factory):
    """A folder for data sets, without any."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def outcomes(workplace, run_each, keras_home):
    """What runs in one process led to, by name: quiet, offline, of each bad input, and others.

    All that fail left the folder as it was.
    """
    before = snapshot(workplace)
    runs = {
        "quiet": [*FORMER, "--quiet"],
        "keep": KEEP_FORMER,
        "offline": ["small.keras", "--data=fashion_mnist"],
        **{name: arguments for name, (arguments, _) in BAD_INPUT.items()},
        "strict": STRICT,
        "interrupt": INTERRUPT,
        "partial": [*PARTIAL, "--output=partial"],
        "by SIGTERM": "sign = signal.SIGTERM",
        "terminated": [*PARTIAL, "--output=terminated"],
        "by SIGHUP": "sign = signal.SIGHUP; first = 'tflite'",
        "hung up": [*PARTIAL, "--output=hung_up"],
        "no more": "_Exports.write = write",
        "proof": ["verify", "partial"],
        "fill": FILL_DISK,
        "full disk": [*FORMER, "--force"],
    }
    environment = {"KERAS_HOME": str(keras_home), "https_proxy": "http://127.0.0.1:9"}
    done = run_each(list(runs.values()), cwd=workplace, **environment)
    assert snapshot(workplace / "former") == snapshot(workplace / "as_it_was")
    after = snapshot(workplace)
    made = ("former/", "as_it_was/", "strict/", "partial/", "terminated/")
    assert {name: after[name] for name in after if not name.startswith(made)} == before
    names = [name for name, arguments in runs.items() if isinstance(arguments, list)]
    return dict(zip(names, done, strict=True))


def test_quiet_run_says_nothing(outcomes, workplace):
    done = outcomes["quiet"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (workplace / "former" / "model.tflite").exists()


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, (_, words) in BAD_INPUT.items()], ids=BAD_INPUT
)
def test_bad_input_is_a_clear_error_and_loses_nothing(outcomes, name, words):
    outcome = outcomes[name]
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("exporter: error: ")
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_usage_error_exits_with_2_and_is_json_if_asked_for(tmp_path):
    done = run("--nonsense", "--json", cwd=tmp_path)
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2
    assert f"exporter: error: {told['error']}\n" == done.stderr


def test_offline_data_set_names_the_file_to_place(outcomes, keras_home):
    done = outcomes["offline"]
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("exporter: error: ")
    assert str(keras_home / "datasets" / "fashion_mnist.npz") in done.stderr


@pytest.mark.slow
def test_json_is_all_of_standard_output_even_where_verbose_shows_the_libraries(workplace):
    done = run(
        "small.h5", "--data=calibration.npz", "--rank=hidden=4", "--no-merge", "--json", "-v",
        "--format=onnx", "--opset=13", "--output=json", cwd=workplace,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert any(word in done.stderr for word in CHATTER)
    assert report["recipe"]["cut"]["merge"] is False
    assert report["layers"][0]["params_after"] == 4 * (36 + 40) + 4 * 4 + 40
    (layer,) = report["artifacts"][0]["conversion"]["structure"]["layers"]
    assert layer["factors"] == [[36, 4], [4, 4], [4, 40]]
    manifest = json.loads((workplace / "json" / "manifest.json").read_text())
    assert {key: manifest[key] for key in report} == report


@pytest.mark.slow
def test_c_source_is_verified_in_the_interpreter_of_microcontrollers(workplace, installed):
    installed("c")
    done = run(
        "small.keras", "--data=good.npz", "--rank=5", "--format=c", "--output=micro", cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (workplace / "micro" / "c").iterdir()} == {
        "model_data.h",
        "model_data.cc",
    }
    manifest = json.loads((workplace / "micro" / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"]
    assert artifact["accepted"]
    assert artifact["conversion"]["structure"]["passed"]
    comparisons = artifact["conversion"]["parity"]["comparisons"]
    assert {comparison["backend"] for comparison in comparisons} == {"tflite_micro", "reference"}
    arena = artifact["file"]["figures"]["arena_bytes"]
    assert f"arena bytes {arena:,}" in done.stdout
    header = (workplace / "micro" / "c" / "model_data.h").read_text()
    assert f"#define SMALL_ARENA_BYTES {arena}\n" in header


@pytest.fixture(scope="module")
def without_micro(workplace, run_each):
    """What runs without the extra ``micro`` led to, by format; the model is not there either."""
    code = (
        "from exporter.formats.extras import Extra\n"
        "from exporter.formats import FORMATS\n"
        "FORMATS['c'].extra = Extra('micro', ('no-such-package',))\n"
    )
    runs = [["nothing.keras", f"--format={name}"] for name in ("c", "all")]
    return dict(zip(("c", "all"), run_each([code, *runs], cwd=workplace), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("c", "needs the extra 'micro'"), ("all", "Format c is left out: it needs the extra 'micro'")],
)
def test_extra_that_is_not_installed_is_named_before_any_work(without_micro, name, words):
    """All stands for what is installed; the model that is not there ends the run."""
    done = without_micro[name]
    assert done.returncode == 2
    assert words in done.stderr
    assert ("does not exist" in done.stderr) == (name == "all")


def test_verdict_that_fails_exits_with_1_and_rejects(workplace, outcomes):
    done = outcomes["strict"]
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert (workplace / "strict" / "rejected" / "model.tflite").exists()
    assert not (workplace / "strict" / "model.tflite").exists()


@pytest.mark.parametrize("name", ["partial", "terminated"])
def test_interrupted_export_keeps_what_has_passed(workplace, outcomes, name):
    done = outcomes[name]
    assert done.returncode == 130
    assert "Interrupted: 1 of 2 artifacts" in done.stdout
    assert "keeps 1 of 2 artifacts" in done.stderr
    manifest = json.loads((workplace / name / "manifest.json").read_text())
    assert (manifest["partial"], manifest["exit_code"]) == (True, 130)
    assert [artifact["format"] for artifact in manifest["artifacts"]] == ["tflite"]
    assert {path.name for path in (workplace / name).iterdir()} == set(manifest["entries"])
    assert not (workplace / name / "model.onnx").exists()


def test_partial_run_can_be_proven_again(outcomes):
    assert outcomes["proof"].returncode == 0


def test_interruption_before_anything_has_passed_writes_nothing(workplace, outcomes):
    done = outcomes["hung up"]
    assert done.returncode == 130
    assert "interrupted, nothing was written" in done.stderr
    assert not (workplace / "hung_up").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sign"), [("scaled", signal.SIGTERM), ("Exporting", signal.SIGINT)]
)
def test_interrupted_run_leaves_what_was_there(workplace, outcomes, sign, stage):
    before = snapshot(workplace)
    np.savez(workplace / "bytes.npz", x=np.full((9, 6, 6), 7, np.uint8))
    arguments = ["small.keras", "--data=bytes.npz", "--format=all", "--output=former", "--force"]
    with subprocess.Popen(
        command(*arguments), cwd=workplace, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if stage in line:
                break
        time.sleep(0.5)
        process.send_signal(sign)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    (workplace / "bytes.npz").unlink()
    assert snapshot(workplace) == before


def test_full_disk_is_a_clear_error_and_loses_nothing(outcomes, workplace):
    done = outcomes["full disk"]
    assert done.returncode == 2
    assert "Nothing that was there has been changed" in done.stderr
    names = {path.name for path in (workplace / "as_it_was").iterdir()}
    assert {path.name for path in (workplace / "former").iterdir()} == names


def _can_mount():
    done = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not _can_mount(), reason="a small disk cannot be mounted here"
)
@pytest.mark.parametrize(
    ("place", "size"), [("output", 60), ("temporary", 40), ("artifacts/cache", 8)]
)
def test_small_disk_is_named_with_its_bytes(workplace, tmp_path, place, size):
    for name in ("output", "temporary", "artifacts/cache"):
        (tmp_path / name).mkdir(parents=True)
    arguments = [
        str(workplace / "small.keras"), f"--data={workplace / 'good.npz'}", "--rank=2",
        "--finetune=1", "--output=output/run", "--format=tflite,saved_model",
    ]  # fmt: skip
    mount = f'mount -t tmpfs -o size={size}k none {place} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", *command(*arguments)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = done.stderr[done.stderr.index("exporter: error: ") :]
    assert place in error
    assert f"of {size * 1024:,} bytes free" in error
    assert not (tmp_path / "output" / "run").exists()
    assert list((tmp_path / "temporary").iterdir()) == []
