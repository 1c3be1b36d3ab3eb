"""Logging to MLflow, by a store in a file of SQLite."""

import json
from pathlib import Path

import pytest

import exporter
from exporter.commands import prepare, tracking
from exporter.errors import InputError, RecipeError, TrackingError
from exporter.formats.extras import Extra

mlflow = pytest.importorskip("mlflow")
# Of how MLflow calls it.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A client of a store of its own, where MLflow logs to."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
        patch.chdir(folder)
        yield mlflow.MlflowClient()


@pytest.fixture(scope="module")
def report(model, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    recipe = exporter.Recipe(
        rank={"hidden": 4}, quantize=("none", "int8"), report=True, output=str(folder / "run")
    )
    return exporter.run(recipe, model=model, dataset=arrays)


def logged(store, identifier):
    run = store.get_run(identifier)
    names, folders = [], [None]
    while folders:
        for entry in store.list_artifacts(identifier, folders.pop()):
            (folders if entry.is_dir else names).append(entry.path)
    return run, sorted(names)


@pytest.mark.slow
def test_a_finished_run_is_logged_with_its_options_figures_and_files(store, report):
    run, names = logged(store, exporter.log_mlflow(report.output, "digits"))
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert store.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.params["rank"] == "{'hidden': 4}"
    assert run.data.params["model_name"] == "little"
    assert "energy" not in run.data.params
    metrics, first = run.data.metrics, report.artifacts[0]
    assert metrics["before/params"] > metrics["after/params"] == report.after.params
    assert metrics["tflite/float32/bytes"] == first.artifact.size
    assert metrics["tflite/float32/latency"] == first.latency.compressed.p50
    (output,) = report.compression.outputs
    assert metrics["before/probabilities/accuracy"] == output.baseline.value
    assert metrics["tflite/float32/probabilities/accuracy"] == output.compressed.value
    assert "tflite/int8/probabilities/snr_db" in metrics
    written = [p for p in report.output.rglob("*") if p.is_file()]
    assert names == sorted(path.relative_to(report.output).as_posix() for path in written)
    assert {"manifest.json", "recipe.yaml", "report.html"} <= {*names}
    again = logged(store, exporter.log_mlflow(str(report.output), "digits"))[0]
    assert again.info.experiment_id == run.info.experiment_id
    assert again.info.run_id != run.info.run_id


@pytest.mark.slow
def test_a_folder_without_a_whole_run_is_refused(report, tmp_path):
    with pytest.raises(InputError, match="manifest"):
        exporter.log_mlflow(tmp_path, "digits")
    manifest = json.loads((report.output / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="lacks its files"):
        exporter.log_mlflow(tmp_path, "digits")
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "totals": None}))
    with pytest.raises(InputError, match="is not the manifest of a run"):
        exporter.log_mlflow(tmp_path, "digits")


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [(OSError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_whose_logging_breaks_off_does_not_stay_running(
    store, report, monkeypatch, error, status
):
    def break_off(*_):
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", break_off)
    with pytest.raises((TrackingError, KeyboardInterrupt)):
        exporter.log_mlflow(report.output, status)
    experiment = store.get_experiment_by_name(status)
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.info.status == status


def test_a_run_that_mlflow_does_not_take_is_there_all_the_same(
    model, arrays, monkeypatch, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = exporter.Recipe(rank={"hidden": 4}, mlflow="digits", output=str(tmp_path / "run"))
    report = exporter.run(recipe, model=model, dataset=arrays)
    assert report.exit_code == 5
    assert "All files are there" in report.warnings[0]
    assert "manifest.json" in {path.name for path in report.output.iterdir()}
    with pytest.raises(TrackingError, match="127"):
        exporter.log_mlflow(report.output, "digits")


def test_an_extra_that_is_missing_is_told_before_work_starts(model, arrays, monkeypatch, tmp_path):
    missing = Extra("mlflow", ("no-such-package",))
    monkeypatch.setattr(prepare, "MLFLOW", missing)
    monkeypatch.setattr(tracking, "MLFLOW", missing)
    recipe = exporter.Recipe(mlflow="digits", output=str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="--mlflow needs the extra 'mlflow'"):
        exporter.run(recipe, model=model, dataset=arrays)
    with pytest.raises(RecipeError, match="needs the extra 'mlflow'"):
        exporter.log_mlflow(tmp_path, "digits")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_is_a_run_whose_children_are_its_trials(store, model, save_npz, arrays, tmp_path):
    file = tmp_path / "little.keras"
    model.save(file)
    recipe = exporter.Recipe(
        model=str(file), data=save_npz(**arrays), mlflow="sweeps", output=str(tmp_path / "sweep")
    )
    found = exporter.sweep(recipe, ranks=[2, 4])
    experiment = store.get_experiment_by_name("sweeps")
    *children, parent = sorted(
        store.search_runs([experiment.experiment_id]),
        key=lambda run: "mlflow.parentRunId" not in run.data.tags,
    )
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.params["rank"] for run in children} == {"2", "4"}
    assert {run.info.run_name for run in children} == {Path(p.trial).name for p in found.points}
    assert parent.data.metrics["chosen/bytes"] == found.chosen.size
    assert logged(store, parent.info.run_id)[1] == ["sweep.csv", "sweep.html"]
