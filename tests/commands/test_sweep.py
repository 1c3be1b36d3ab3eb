"""Sweeps: whole runs in processes of their own."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import exporter
from exporter.commands import proposals
from exporter.commands.sweep import dry_sweep, sweep
from exporter.errors import ExporterError, OutputError, RecipeError
from exporter.formats.extras import Extra
from exporter.output import alone_in
from exporter.recipe import Recipe
from exporter.tradeoff import pools
from exporter.tradeoff.forecast import print_sweep_forecast
from exporter.tradeoff.front import UNCOMPRESSED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(model, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    model.save(folder / "little.keras")
    np.savez(folder / "data.npz", **arrays)
    return folder


@pytest.fixture
def recipe(files, tmp_path):
    return Recipe(
        model=str(files / "little.keras"),
        data=str(files / "data.npz"),
        quantize=("none", "int8"),
        output=str(tmp_path / "sweep"),
    )


class _Here(pools.Processes):
    """Carries trials out in this process, which has imported all that takes seconds to import."""

    def start(self, trial):
        trial.command()  # Writes the recipe.
        self._ended = trial, None
        try:
            exporter.run(Recipe.from_json(trial.file.read_text()))
        except ExporterError as error:
            self._ended = trial, str(error)

    def wait(self):
        return self._ended


@pytest.fixture
def here(monkeypatch):
    """For tests of what trials are chosen: others see to their processes."""
    monkeypatch.setattr(exporter.commands.sweep, "Processes", _Here)


@pytest.mark.slow
def test_artifacts_of_all_trials_are_held_against_each_other(recipe, tmp_path):
    found = sweep(recipe, ranks=[2, "0.9"])
    assert not found.failures
    goals = {point.goal for point in found.points}
    assert goals >= {"rank 2", "rank 0.9", UNCOMPRESSED}
    assert set(found.front) <= set(found.points)
    assert found.chosen in found.front
    rows = list(csv.DictReader((found.output / "sweep.csv").read_text().splitlines()))
    assert [int(row["bytes"]) for row in rows] == sorted(point.size for point in found.points)
    assert sum(int(row["chosen"]) for row in rows) == 1
    for point in found.points:
        assert point.path is None or Path(point.path).stat().st_size == point.size

    smallest = min(found.points, key=lambda point: point.size)
    told = dry_sweep(recipe, ranks=[2, "0.9", 3])
    assert (told.done, told.missing) == (("rank 2", "rank 0.9"), ("rank 3",))
    damaged = next((found.output / "trials").glob("rank-2-*/manifest.json"))
    damaged.write_text("{}")
    again = sweep(recipe, ranks=[2, "0.9"], max_size=smallest.size)
    assert again.kept == 1
    assert again.chosen.size == smallest.size
    _, *words = shlex.split(again.command)
    subprocess.run([sys.executable, "-P", "-m", "exporter", *words, "--quiet"], check=True)
    (made,) = (tmp_path / "sweep" / "chosen").glob("*.tflite")
    assert made.read_bytes() == Path(again.chosen.path).read_bytes()
    assert made.with_name("report.html").exists()
    assert sweep(recipe, ranks=[2], max_size=1).chosen is None


def test_artifacts_are_compared_on_validation_data(recipe, here):
    before = sweep(recipe, ranks=[2])
    (file,) = before.output.glob("trials/rank-2-*/manifest.json")
    manifest = json.loads(file.read_text())
    for artifact in manifest["artifacts"]:
        (held,) = artifact["validation"].values()
        held["metric"]["value"] = held["baseline"]["value"] - 0.25
        (tested,) = artifact["conversion"]["standings"].values()
        tested["metric"]["value"] = tested["baseline"]["value"] - 0.125
    file.write_text(json.dumps(manifest))
    after = sweep(recipe, ranks=[2])
    assert after.kept == 1
    own = [point for point in after.points if point.goal == "rank 2"]
    assert [(point.loss, point.test_loss) for point in own] == [(0.25, 0.125)] * 2
    assert sweep(recipe, ranks=[2], max_drop=0.2).chosen.goal == UNCOMPRESSED


@pytest.mark.slow
@pytest.mark.parametrize("choose", [("channels",), ("rank", "channels", "bits")])
def test_trials_close_in_on_the_smallest_artifact(recipe, choose, monkeypatch, here):
    monkeypatch.setattr(proposals, "MOST_TRIALS", 3)
    monkeypatch.setattr(proposals, "MORE_TRIALS", 1)
    plain = Recipe(**{**vars(recipe), "quantize": ("none",)})
    found = sweep(plain, best="size", choose=choose, max_drop=0.3)
    kept = [point for point in found.points if point.loss <= 0.3]
    assert all("cannot be reached" in why for why in found.failures.values()), found.failures
    assert found.chosen.size == min(point.size for point in kept)
    assert found.chosen.goal != UNCOMPRESSED
    variants = {point.variant for point in found.points}
    assert ("int8" in variants) == ("bits" in choose)
    trial = Path(found.chosen.trial)
    channels = json.loads((trial / "manifest.json").read_text())["channels"]
    assert bool(channels) or "channels" not in choose or len(choose) == 3
    assert not channels or "channels" in choose


@pytest.mark.slow
def test_the_best_accuracy_within_a_size_keeps_it(recipe, here):
    whole = sweep(recipe, ranks=["0.9"])
    limit = max(point.size for point in whole.points if point.variant == "int8")
    found = sweep(recipe, best="accuracy", max_size=limit)
    kept = [point for point in found.points if point.size <= limit]
    assert found.chosen.size <= limit
    assert found.chosen.loss == min(point.loss for point in kept)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ranks": ["many"]}, "whole number"),
        ({"ranks": [2, 999]}, "at most 48"),
        ({"ranks": []}, "at least one rank"),
        ({"jobs": 0}, "jobs must be"),
        ({"search": 0}, "search must be"),
        ({"ranks": [2], "search": 2}, "Give one of them. Received: ranks, search"),
        ({"best": "size", "search": 2}, "Give one of them. Received: search, best"),
        ({"best": "beauty", "max_drop": 0.1}, "best must be one of"),
        ({"best": "size"}, "The best size is one within a limit: give max_drop"),
        ({"best": "accuracy", "max_drop": 0.1}, "give max_size or max_latency"),
        ({"best": "size", "max_drop": 0.1, "choose": ["bits"]}, "must name rank, channels"),
        ({"best": "size", "max_drop": 0.1, "choose": ["rnak"]}, "Did you mean 'rank'"),
        ({"ranks": [2], "ray": "nowhere-at-all"}, "--ray must be auto or the address"),
        ({"ranks": [2], "ray": "127.0.0.1:1"}, "where nothing listens"),
        ({"max_drop": 7}, "max_drop"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_trial(recipe, changes, told):
    if "ray" in changes:
        pytest.importorskip("ray")
    with pytest.raises(RecipeError, match=told):
        sweep(recipe, **changes)
    assert not (Path(recipe.export.output) / "trials").exists()


def test_a_dry_run_tells_the_trials_and_writes_nothing(recipe):
    told = dry_sweep(recipe, ranks=[2, 3], jobs=2)
    assert (told.done, told.missing, told.more) == ((), ("rank 2", "rank 3"), 0)
    assert told.seconds == told.first.seconds > 0
    assert [each.variant for each in told.first.artifacts] == ["float32", "int8"]
    assert not told.output.exists()
    console = Console(file=io.StringIO(), width=80)
    print_sweep_forecast(told, console)
    text = console.file.getvalue()
    assert text.count("would run") == 2
    assert "by a dry run of the first" in text


def test_a_dry_run_of_a_search_tells_what_is_known(recipe):
    told = dry_sweep(recipe, best="size", max_drop=0.5, choose="rank")
    assert told.missing == ("max_params 20.00% by rank",)
    assert told.more == 7


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.html", "trials"])
def test_files_that_no_sweep_wrote_stay(recipe, name):
    file = Path(recipe.export.output) / name
    file.parent.mkdir()
    file.write_text("mine")
    for verb in (dry_sweep, sweep):
        with pytest.raises(OutputError, match=f"holds {name}, which no sweep wrote"):
            verb(recipe, ranks=[2])
    assert file.read_text() == "mine"


def test_a_second_sweep_into_a_folder_is_refused(recipe):
    folder = Path(recipe.export.output)
    folder.mkdir()
    with alone_in(folder), pytest.raises(OutputError, match="Another run is writing"):
        sweep(recipe, ranks=[2])


def test_a_goal_is_no_part_of_a_sweep(recipe):
    with pytest.raises(RecipeError, match="chooses ranks itself"):
        sweep(Recipe(**{**vars(recipe), "goal": exporter.recipe.Goal(energy=0.9)}))


@pytest.mark.parametrize(
    ("module", "name", "choice"), [(pools, "ray", "auto"), (proposals, "parquet", True)]
)
def test_an_extra_that_is_missing_is_named(recipe, monkeypatch, module, name, choice):
    monkeypatch.setattr(module, name.upper(), Extra(name, ("no-such-package",)))
    with pytest.raises(RecipeError, match=f"--{name} needs the extra {name!r}"):
        sweep(recipe, ranks=[2], **{name: choice})


def _started(recipe, *arguments):
    command = [sys.executable, "-P", "-m", "exporter", "sweep", recipe.source.model]
    command += ["--data", recipe.source.data, "--output", recipe.export.output, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _trials(recipe):
    return Path(recipe.export.output) / "trials"


def _running(recipe):
    done = subprocess.run(
        ["pgrep", "-f", str(_trials(recipe))], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_sweep_that_was_ended_goes_on(recipe):
    finished = {}
    for number in (signal.SIGINT, signal.SIGKILL):
        process = _started(recipe, "--ranks", "2,3,4")
        manifests = partial(_trials(recipe).glob, "*/manifest.json")
        _wait_for(lambda: len(list(manifests())) > len(finished))  # noqa: B023
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert ("finished trials are kept" in errors) == (number == signal.SIGINT)
        _wait_for(lambda: not _running(recipe), 5)
        finished = {path: path.stat().st_mtime_ns for path in manifests()}
    process = _started(recipe, "--ranks", "2,3,4", "--json")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(printed)["kept"] == len(finished) >= 2
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    assert len(list(_trials(recipe).glob("*/manifest.json"))) == 3


@pytest.mark.slow
def test_a_search_proposes_what_it_learns_from(recipe, here):
    pytest.importorskip("optuna")
    found = sweep(recipe, search=3)
    assert found.kept == 0
    assert not found.failures
    assert {point.goal.partition(" ")[0] for point in found.points} == {"max_params", "rank"}
    assert sweep(recipe, search=3).kept == 3


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of two machines, both this one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_no_trial_is_lost_or_repeated_when_a_worker_of_a_cluster_dies(recipe, cluster):
    process = _started(
        recipe, "--ranks", "2,3,4", "--jobs", "2", "--ray", cluster.address, "--json"
    )
    _wait_for(lambda: _running(recipe))
    victim = int(Path(f"/proc/{_running(recipe)[0]}/stat").read_text().split()[3])
    os.kill(victim, signal.SIGKILL)  # The worker of Ray that the trial is a child of.
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    found = json.loads(printed)
    assert not found["failures"]
    assert {point["goal"] for point in found["points"]} == {
        "rank 2",
        "rank 3",
        "rank 4",
        UNCOMPRESSED,
    }
    assert len(list(_trials(recipe).glob("*/manifest.json"))) == 3
