"""Artifacts, whoever made them, timed in turns by their real runtimes."""

import csv
import json

import numpy as np
import onnx
import pytest

import exporter
from exporter.cli import main
from exporter.commands import benchmark as verb
from exporter.errors import InputError, OutputError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.packing import pack, unpack
from exporter.graph.network import Network
from exporter.options.checks import Timing


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    monkeypatch.setattr(verb, "ROUNDS", 2)


@pytest.fixture(scope="module")
def folder(build, tmp_path_factory):
    """A folder as a run leaves it, with the uncompressed network beside an artifact of a batch."""
    folder, network = tmp_path_factory.mktemp("artifacts"), Network(build("tiny"))
    (folder / "uncompressed").mkdir()
    FORMATS["tflite"].export(network, folder / "model.tflite", ExportOptions())
    FORMATS["onnx"].export(network, folder / "model.onnx", ExportOptions(batch=3))
    FORMATS["tflite"].export(network, folder / "uncompressed" / "model.tflite", ExportOptions())
    (folder / "manifest.json").write_text("{}")
    return folder


def foreign(path, shape, kind=onnx.TensorProto.FLOAT):
    """A graph that another tool might have made: names with dots, and axes that are free."""
    infos = [onnx.helper.make_tensor_value_info(f"{n}.0", kind, shape) for n in ("in", "out")]
    node = onnx.helper.make_node("Identity", ["in.0"], ["out.0"])
    graph = onnx.helper.make_graph([node], "foreign", infos[:1], infos[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_each_artifact_in_a_folder_is_timed_with_each_batch(folder, tmp_path):
    table = tmp_path / "table.csv"
    found = exporter.benchmark(folder, batch=4, threads=(2,), operators=True, csv=table)
    ways = [(1, 2), (4, 2)]
    expected = {
        (file, *way) for file in ("model.tflite", "uncompressed/model.tflite") for way in ways
    }
    expected |= {("model.onnx", 3, 2)}
    assert {(each.file, each.batch, each.threads) for each in found.timed} == expected
    assert "model.onnx takes batches of 3 alone." in found.notes
    for each in found.timed:
        assert len(each.turns) == 2
        assert 0 < each.latency(0.5) <= each.latency(0.9) <= each.latency(0.99) < each.load < 60
        assert each.memory is None or 0 <= each.memory < 10**9
        assert each.size == (folder / each.file).stat().st_size
    assert {each.how for each in found.controls} == {*ways, (3, 2)}
    assert len(found.differences) == len(ways)
    assert set(found.operators) == {"model.tflite", "uncompressed/model.tflite", "model.onnx"}
    assert [each.count for each in found.operators["model.onnx"]] == [1]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.timed)
    assert float(rows[0]["p50_ms"]) == pytest.approx(1e3 * found.timed[0].latency(0.5))
    exporter.benchmark(folder / "model.onnx", threads=(1, 2), csv=table)
    assert len(table.read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_timed_by_one_thread_and_by_two(name, installed, build, tmp_path):
    path = tmp_path / f"model{installed(name).suffix}"
    FORMATS[name].export(Network(build("tiny")), path, ExportOptions())
    found = exporter.benchmark(path, batch=2, threads=(1, 2))
    free = name != "c"
    ways = {(batch, threads) for batch in (1, 2) for threads in (1, 2)} if free else {(1, 1)}
    assert {each.how for each in found.timed} == ways
    assert (found.failed, found.skipped) == ({}, {})


def test_files_that_this_package_did_not_make(folder, tmp_path):
    model = unpack((folder / "model.tflite").read_bytes())
    model.signatureDefs = None
    (tmp_path / "bare.tflite").write_bytes(pack(model))
    graph = foreign(tmp_path / "graph.onnx", ["n", None, 7])
    found = exporter.benchmark([tmp_path / "bare.tflite", graph], size=5)
    assert [each.file for each in found.timed] == ["bare.tflite", "graph.onnx"]
    assert not found.failed


def test_what_cannot_be_timed_is_an_error_before_any_work(folder, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "failed" / "rejected").mkdir(parents=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "compressed.keras").touch()
    free = foreign(tmp_path / "free.onnx", ["n", "length", 7])
    words = foreign(tmp_path / "words.onnx", ["n", 1], onnx.TensorProto.STRING)
    fine = folder / "model.onnx"
    for files, more, told in [
        ([fine, tmp_path / "bad.onnx"], {}, "bad.onnx' cannot be read as onnx"),
        ([fine, tmp_path / "nothing.tflite"], {}, "which does not exist"),
        (tmp_path / "empty", {}, "must hold an artifact .* Give the folder of a run"),
        (tmp_path / "failed", {}, "No artifact of that run has passed: give .*rejected to time"),
        (tmp_path / "cut", {}, "exporter export .*compressed.keras makes artifacts"),
        ([], {}, "one artifact at least"),
        ([fine, free], {}, r"'in.0' of shape \(any, any, 7\) has free axes .* --size 96"),
        (free, {"size": (1, 2, 3)}, "size must be that of the 1 free axes"),
        (fine, {"size": 5}, "leave none but the batch"),
        (words, {}, "must be numbers. Received: 'in.0' of string"),
        (fine, {"batch": 0}, "batch must be"),
        (fine, {"threads": (0, 1)}, "threads must be"),
        (fine, {"threads": ()}, "threads must be"),
    ]:
        with pytest.raises(InputError, match=told):
            exporter.benchmark(files, **more)


def test_a_table_costs_nobody_a_file(folder, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n1,2\n")
    for path in (mine, tmp_path, tmp_path / "nowhere" / "table.csv"):
        with pytest.raises(OutputError, match="csv "):
            exporter.benchmark(folder, csv=path)
    assert mine.read_text() == "a,b\n1,2\n"


def test_an_artifact_that_its_runtime_cannot_run_fails_alone(folder, tmp_path, capfd):
    graph = onnx.load(foreign(tmp_path / "graph.onnx", ["n", 7]))
    graph.graph.node[0].op_type = "Reshape"
    graph.graph.node[0].input.append("shape")
    shape = onnx.numpy_helper.from_array(np.array([2, 9]), "shape")
    graph.graph.initializer.append(shape)
    onnx.save(graph, tmp_path / "graph.onnx")
    code = main(["benchmark", str(tmp_path / "graph.onnx"), str(folder / "model.tflite"), "--json"])
    found = json.loads(capfd.readouterr().out)
    assert code == 1
    assert [each["file"] for each in found["timed"]] == ["model.tflite"]
    assert "it cannot be run: " in found["failed"]["graph.onnx"]
    assert [each["file"] for each in found["controls"]] == ["model.tflite"]


def test_threads_may_be_a_list():
    assert Timing(threads=[2, 1, 2]).threads == (1, 2)
