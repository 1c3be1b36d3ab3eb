"""The report of a finished run, drawn anew."""

import json
import shutil

import pytest

import exporter
from exporter.cli import main
from exporter.commands import run
from exporter.commands.verify import verify_stored
from exporter.errors import Terminated
from exporter.formats.base import measure


@pytest.fixture(scope="module")
def finished(model, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = exporter.Recipe(rank={"deep": 4}, output=str(folder), report=True)
    exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_command_line_draws_it_and_says_what_to_open(folder, tmp_path, capfd):
    assert main(["report", str(folder)]) == 0
    assert f"Next: open {folder / 'report.html'}" in capfd.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "not the manifest of a run" in capfd.readouterr().err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_the_same_again(folder):
    before = contents(folder)
    (folder / "mine.txt").write_text("mine")
    (folder / "report.html").write_text("lost")
    shutil.rmtree(folder / "report_figures")
    assert exporter.write_report(folder) == folder / "report.html"
    assert contents(folder) == {**before, folder / "mine.txt": b"mine"}


def test_without_pictures_it_is_drawn_from_the_manifest(folder):
    (folder / "report.npz").unlink()
    exporter.write_report(folder)
    assert "baseline W" not in (folder / "report.html").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    (listed,) = [file for file in manifest["files"] if file["path"] == "report.html"]
    assert (listed["bytes"], listed["sha256"]) == measure(folder / "report.html")
    assert all(report.accepted for report in verify_stored(str(folder)))


def test_a_run_without_a_report_gets_one(model, arrays, tmp_path):
    recipe = exporter.Recipe(rank={"deep": 4}, output=str(tmp_path / "run"), report=False)
    exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    names = {"report.html", "report.md", "report_figures"}
    assert not names & {path.name for path in (tmp_path / "run").iterdir()}
    exporter.write_report(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert names <= set(manifest["entries"])


def _foreign(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["entries"].remove("report.md")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _poor(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["layers"][0]["reason"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (lambda run: (run / "manifest.json").unlink(), exporter.InputError, "not the manifest"),
        (lambda run: (run / "report.npz").write_bytes(b"x"), exporter.InputError, "SHA-256"),
        (_foreign, exporter.OutputError, r"report\.md.*did not write"),
        (_poor, exporter.InputError, "must follow the schema"),
    ],
)
def test_what_cannot_be_drawn_changes_nothing(spoil, error, told, folder):
    spoil(folder)
    before = contents(folder)
    with pytest.raises(error, match=told):
        exporter.write_report(folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("no figure"), "ZeroDivisionError: no figure"),
        (KeyboardInterrupt(), "it was interrupted"),
        (Terminated(), "it was interrupted"),
    ],
)
def test_a_report_that_fails_costs_no_artifact(
    error, told, tmp_path, monkeypatch, *, model, arrays
):
    def fail(*_):
        raise error

    monkeypatch.setattr(run, "draw_report", fail)
    recipe = exporter.Recipe(rank={"deep": 4}, output=str(tmp_path / "run"), report=True)
    report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert report.passed
    assert told in report.warnings[0]
    assert (tmp_path / "run" / "model.tflite").exists()
    monkeypatch.undo()
    assert exporter.write_report(tmp_path / "run").exists()
