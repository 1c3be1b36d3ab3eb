import hashlib
import json

import jsonschema
import pytest

import exporter
from exporter.formats import FORMATS
from exporter.report.manifest import SCHEMA_VERSION, manifest_schema, report_dict

EXIT_CODES = {
    "accepted": 0,
    "rejected": 1,
    "unconverted": 3,
    "finetuned": 0,
    "adapted": 0,
    "quantized": 0,
}


@pytest.fixture(scope="module")
def schema():
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def manifest_of(report):
    return json.loads((report.output / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", list(EXIT_CODES))
def test_manifest_follows_its_schema(kind, schema, request):
    report = request.getfixturevalue(kind)
    manifest = manifest_of(report)
    jsonschema.validate(manifest, schema)
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert (manifest["passed"], manifest["exit_code"]) == (report.passed, report.exit_code)
    assert manifest["exit_code"] == EXIT_CODES[kind]


def test_schema_refuses_what_is_no_manifest(accepted, schema):
    manifest = manifest_of(accepted)
    for broken in (
        {**manifest, "surprise": 1},
        {**manifest, "exit_code": 2},
        {key: value for key, value in manifest.items() if key != "files"},
        {**manifest, "files": [{**manifest["files"][0], "path": "/tmp/model.tflite"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_files_are_listed_with_size_and_hash(accepted):
    manifest = manifest_of(accepted)
    listed = {entry["path"]: entry for entry in manifest["files"]}
    assert set(listed) == {
        "compressed.keras",
        "model.tflite",
        "model.onnx",
        "model.ort",
        "saved_model",
        "reference.npz",
        "recipe.yaml",
        *(["c"] if "c" in accepted.recipe.export.formats else []),
    }
    assert set(manifest["entries"]) == {*listed, "manifest.json"}
    for name in ("compressed.keras", "model.tflite", "model.onnx", "model.ort"):
        content = (accepted.output / name).read_bytes()
        assert listed[name]["bytes"] == len(content)
        assert listed[name]["sha256"] == hashlib.sha256(content).hexdigest()
    inside = [path for path in (accepted.output / "saved_model").rglob("*") if path.is_file()]
    assert listed["saved_model"]["bytes"] == sum(path.stat().st_size for path in inside)
    for artifact in manifest["artifacts"]:
        file = artifact["file"]
        assert file["size"] == FORMATS[artifact["format"]].size(accepted.output / file["path"])
        assert file["size"] <= listed[file["path"]]["bytes"]
        assert file["sha256"] == listed[file["path"]]["sha256"]


def test_figures_of_an_artifact_are_in_its_file(accepted, installed):
    installed("c")
    figures = {
        item["format"]: item["file"]["figures"] for item in manifest_of(accepted)["artifacts"]
    }
    assert figures["tflite"] == {}
    assert figures["c"].keys() == {"arena_bytes"}
    assert figures["c"]["arena_bytes"] > 0


def test_versions_name_what_formats_need_beyond_the_usual(accepted, rejected, installed):
    installed("c")
    assert "tflite-micro" in manifest_of(accepted)["versions"]
    assert "tflite-micro" not in manifest_of(rejected)["versions"]


def test_rejected_artifact_is_listed_where_it_is(rejected):
    manifest = manifest_of(rejected)
    assert manifest["artifacts"][0]["file"]["path"] == "rejected/model.onnx"
    assert "rejected/model.onnx" in {entry["path"] for entry in manifest["files"]}
    assert "rejected" in manifest["entries"]


def test_recipe_can_be_run_again(accepted):
    assert exporter.Recipe.from_dict(manifest_of(accepted)["recipe"]) == accepted.recipe


def test_verdicts_bear_tolerance_and_figures(accepted):
    manifest = manifest_of(accepted)
    for artifact in manifest["artifacts"]:
        for comparison in artifact["conversion"]["parity"]["comparisons"]:
            assert comparison["tolerance"]["derived"] is True
            assert comparison["tolerance"]["atol"] > 0
            assert comparison["max_abs"] <= comparison["tolerance"]["atol"]
            assert comparison["passed"] is True
    (layer,) = manifest["layers"]
    assert (layer["shape"], layer["rank"]) == ([8, 6], 2)
    assert 0 < layer["discarded_energy"] < 1
    assert layer["predicted_error"] == pytest.approx(layer["discarded_energy"] ** 0.5)


def test_infinite_figures_are_null(accepted):
    values = report_dict(accepted)
    exact = [
        comparison
        for artifact, item in zip(values["artifacts"], accepted.artifacts, strict=True)
        for comparison, original in zip(
            artifact["conversion"]["parity"]["comparisons"],
            item.conversion.parity.comparisons,
            strict=True,
        )
        if original.snr_db == float("inf")
    ]
    assert exact  # The reloaded SavedModel is the very same graph.
    assert all(comparison["snr_db"] is None for comparison in exact)


def test_variants_have_a_verdict_and_what_was_tried(quantized):
    plain, dynamic, integers = manifest_of(quantized)["artifacts"]
    assert [item["variant"] for item in (plain, dynamic, integers)] == [
        "float32",
        "dynamic",
        "int8",
    ]
    assert plain["trials"] == []
    assert plain["conversion"]["quality"] is None
    assert integers["conversion"]["parity"] is None
    assert integers["conversion"]["quality"]["outputs"]
    assert [trial["granularity"] for trial in integers["trials"]] in (
        ["tensor", "channel"],
        ["channel", "tensor"],
    )
    assert plain["gauge"] is None
    assert [item["gauge"]["scheme"] for item in (dynamic, integers)] == ["dynamic", "static"]
    assert [layer["name"] for layer in integers["gauge"]["layers"]] == ["scores"]
    (taken,) = integers["file"]["inputs"]
    assert taken["dtype"] == "int8"
    assert taken["quantization"]["scale"] > 0


def test_a_run_that_compresses_nothing_says_so(unconverted, accepted):
    assert manifest_of(unconverted)["factorized"] == 0
    assert manifest_of(accepted)["factorized"] == 1


def test_failed_conversion_says_why(unconverted):
    (artifact,) = manifest_of(unconverted)["artifacts"]
    assert artifact["file"] is None
    assert artifact["conversion"] is None
    assert artifact["error"] == unconverted.artifacts[0].error
