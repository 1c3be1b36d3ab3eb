"""Fine-tuning by the command line, killed, resumed, interrupted, and spread over workers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def command(*arguments):
    return [sys.executable, "-m", "exporter", *arguments]


def run(*arguments, cwd):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a compiled model, and data that it can learn from."""
    import keras

    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((36,), name="features"),
            layers.Dense(48, activation="relu", bias_initializer="normal", name="hidden"),
            layers.Dense(3, activation="softmax", bias_initializer="normal", name="out"),
        ],
        name="small",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    # Of which 1152 are trained on, in whole batches: a step is traced for each size.
    x = rng.normal(size=(1600, 36)).astype("float32")
    y = x[:, :9].reshape(-1, 3, 3).sum(axis=-1).argmax(axis=-1)
    np.savez(folder / "data.npz", x=x, y=y)
    model.fit(x, y, epochs=3, verbose=0)
    model.save(folder / "small.keras")
    return folder


OPTIONS = ("small.keras", "--data=data.npz", "--rank=3", "--method=svd", "--distill=0.1")


TUNED = [*OPTIONS, "--finetune=6", "--learning-rate=0.005", "--format=onnx", "--output=tuned"]
PROJECTED = [
    *OPTIONS, "--finetune=2", "--train=projected", "--export-from=updated",
    "--format=onnx", "--output=projected",
]  # fmt: skip

ADAPTED = [
    *OPTIONS, "--finetune=2", "--train=adaptive", "--format=onnx", "--output=adapted"
]  # fmt: skip

BAD_INPUT = {
    "no data": (
        ["small.keras", "--data=none", "--finetune=1"],
        "Fine-tuning needs a training part",
    ),
    "epochs -1": (
        ["small.keras", "--data=data.npz", "--finetune=-1"],
        "finetune must be a number of epochs >= 0",
    ),
    "no cluster": (
        ["small.keras", "--data=data.npz", "--finetune=1", "--distribute=multiworker"],
        "needs TF_CONFIG",
    ),
}


@pytest.fixture(scope="module")
def outcomes(workplace, run_each):
    """What came of the runs that end by themselves, by name."""
    runs = {"tuned": TUNED, "projected": PROJECTED, "adapted": ADAPTED}
    runs |= {n: a for n, (a, _) in BAD_INPUT.items()}
    return dict(zip(runs, run_each(list(runs.values()), cwd=workplace), strict=True))


def weights_of(folder):
    import keras

    model = keras.models.load_model(folder / "compressed.keras", compile=False)
    return [weight.numpy() for weight in model.weights]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_accuracy_comes_back_and_is_that_of_the_file(workplace, outcomes):
    done = outcomes["tuned"]
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(workplace / "tuned")
    (phase,) = manifest["finetuning"]["phases"]
    assert phase["epochs"][phase["best"]]["accuracy"] > phase["epochs"][0]["accuracy"] + 0.05
    (output,) = manifest["compression"]["outputs"]
    (artifact,) = manifest["artifacts"]
    assert artifact["conversion"]["metrics"]["out"] == output["compressed"]
    assert (workplace / "tuned" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "Fine-tuning  factored, 6 epochs in " in done.stdout
    assert "Epoch 6 of 6: loss " in done.stderr
    # Nothing is left to go on from.
    assert not list((workplace / "artifacts").rglob("*.npz"))


def test_projected_training_saves_both_of_its_models(workplace, outcomes):
    done = outcomes["projected"]
    assert done.returncode == 0, done.stderr
    import keras

    folder = workplace / "projected"
    truncated, updated, baseline = (
        keras.models.load_model(path, compile=False)
        for path in (
            folder / "truncated.keras",
            folder / "updated.keras",
            workplace / "small.keras",
        )
    )
    assert updated.count_params() == baseline.count_params() > truncated.count_params()


def test_adapted_ranks_are_those_of_plan_manifest_and_file(workplace, outcomes):
    done = outcomes["adapted"]
    assert done.returncode == 0, done.stderr
    assert "Trying out ranks" in done.stderr
    assert "Ranks        hidden 3 -> " in done.stdout
    manifest = manifest_of(workplace / "adapted")
    adaptation = manifest["finetuning"]["adaptation"]
    ranks = adaptation["adapted"] if adaptation["taken"] else adaptation["planned"]
    layers = {layer["name"]: layer for layer in manifest["layers"]}
    assert {name: layers[name]["rank"] for name in ranks} == ranks
    total = sum(layer["params_after"] for layer in layers.values())
    assert manifest["totals"]["after"]["params"] == total
    (artifact,) = manifest["artifacts"]
    assert artifact["conversion"]["structure"]["passed"]
    # Nothing is left to go on from.
    assert not list((workplace / "artifacts").rglob("*.npz"))


def test_run_that_was_killed_ends_with_the_same_weights(workplace):
    arguments = [
        *OPTIONS, "--finetune=24", "--train=projected+factored", "--format=onnx", "--resume"
    ]  # fmt: skip
    whole = run(*arguments, "--output=whole", cwd=workplace)
    assert whole.returncode == 0, whole.stderr
    for epochs in (8, 24):
        with subprocess.Popen(
            command(*arguments, "--output=cut"),
            cwd=workplace,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            # Wherever the former process got to: in the first phase, then in the second.
            seen = (line for line in process.stderr if line.startswith("Epoch "))
            for _ in range(epochs):
                next(seen)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    resumed = run(*arguments, "--output=cut", cwd=workplace)
    assert resumed.returncode == 0, resumed.stderr
    assert "Goes on from the checkpoint in epoch " in resumed.stderr
    first, second = (weights_of(workplace / name) for name in ("whole", "cut"))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ctrl_c_exports_the_best_so_far(workplace):
    with subprocess.Popen(
        command(*OPTIONS, "--finetune=500", "--format=onnx", "--output=interrupted"),
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if "Epoch 3 of 500" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "goes on with the best so far" in errors
    assert "INTERRUPTED" in output
    (phase,) = manifest_of(workplace / "interrupted")["finetuning"]["phases"]
    assert phase["ending"] == "interrupted"
    assert phase["best"] > 0


def test_sigterm_stops_the_run_and_keeps_the_checkpoint(workplace):
    arguments = [*OPTIONS, "--finetune=40", "--format=onnx", "--output=stopped", "--resume"]
    with subprocess.Popen(
        ["nohup", *command(*arguments)], cwd=workplace, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        for line in process.stderr:
            if "Epoch 2 of 40" in line:
                process.send_signal(signal.SIGHUP)  # Which nohup lets it ignore.
            if "Epoch 4 of 40" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "interrupted, nothing was written" in rest
    assert not (workplace / "stopped").exists()
    resumed = run(*arguments, cwd=workplace)
    assert resumed.returncode == 0, resumed.stderr
    assert "Goes on from the checkpoint in epoch " in resumed.stderr


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, (_, words) in BAD_INPUT.items()], ids=BAD_INPUT
)
def test_bad_input_is_a_clear_error(outcomes, name, words):
    outcome = outcomes[name]
    assert outcome.returncode == 2
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_cluster_goes_on_after_a_worker_was_killed(workplace):
    arguments = [*OPTIONS, "--finetune=30", "--format=onnx", "--output=cluster"]
    with subprocess.Popen(
        [str(ROOT / "scripts" / "train-cluster"), "2", *arguments],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stderr:
            if "Epoch 3 of 30" in line:
                break
        os.kill(_worker_of(process.pid), signal.SIGKILL)
        output, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    assert "A worker was lost: all start again from the checkpoint" in errors
    assert "Goes on from the checkpoint in epoch " in errors
    assert "Fine-tuning  factored, 30 epochs in " in output


def _worker_of(pid):
    """Finds the worker that is not heard, among the children of the script."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"--quiet" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise ProcessLookupError("The script has no second worker.")
