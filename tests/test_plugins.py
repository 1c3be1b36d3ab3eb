"""Packages that add to the tables, and what is told of those that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import exporter
from exporter import plugins
from exporter.graph.layers import kinds
from exporter.lowrank.factorizers import factorizers

ROOT = Path(__file__).parents[1]

MODULE = """
from exporter import Format

class Made(Format):
    name, suffix, backends, runtime = "made", ".made", ("python",), ("json",)
    export = load = read_interface = stored_tensors = None

class Onnx(Made):
    name = "onnx"

class Suffix(Made):
    name = "other"
    suffix = ".tflite"

class Everything(Made):
    name = "all"

class Bare(Format):
    export = load = read_interface = stored_tensors = None

NUMBER = 3
"""


@pytest.fixture
def environment(tmp_path):
    """Installs a package by hand: ``environment(group, name=value)`` returns what finds it."""

    def install(group, package="broken", module=MODULE, **entries):
        (tmp_path / f"{package}_module.py").write_text(module)
        described = tmp_path / f"{package}-1.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        lines = [f"{name} = {package}_module:{value}" for name, value in entries.items()]
        (described / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    return install


def run(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("Lost", "AttributeError: module 'broken_module' has no attribute 'Lost'."),
        ("NUMBER", "TypeError: it is no exporter.Format, but int."),
        ("Format", "TypeError: Can't instantiate abstract class Format"),
        ("Bare", "TypeError: the format has no name, suffix, backends, runtime."),
        ("Everything", "ValueError: 'all' cannot be the name of a format."),
        ("Onnx", "ValueError: the name 'onnx' is taken by exporter.formats.onnx.onnx.Onnx."),
        ("Suffix", "ValueError: the suffix '.tflite' is taken by exporter.formats.tflite.tflite."),
    ],
)
def test_a_format_that_cannot_be_used_ends_a_command_and_tells_the_way_out(
    value, told, environment
):
    found = environment("exporter.formats", fine="Made", wrong=value)
    done = run(found, "-m", "exporter", "recipe", "phone")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Package broken 1.0 adds to exporter.formats by its entry point 'wrong = " in done.stderr
    assert told in done.stderr
    assert "-m pip uninstall broken" in done.stderr


def test_help_lists_formats_and_what_is_left_out(environment):
    environment("exporter.formats", package="first", made="Made")
    found = environment("exporter.formats", package="second", made="Made")
    done = run(found, "-m", "exporter", "--help")
    assert done.returncode == 0
    assert "  made         none\n" in done.stdout
    assert "  what second adds cannot be used: exporter doctor\n" in done.stdout
    code = (
        "import exporter\ntry: exporter.benchmark('x')\nexcept exporter.PluginError as e: print(e)"
    )
    told = run(found, "-c", code).stdout
    assert "Package second 1.0" in told
    assert "the name 'made' is taken by first_module.Made" in told


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise SystemExit('no licence')", "SystemExit: no licence."),
        ("import exporter.formats.onnx.missing", "No module named 'exporter.formats.onnx.missing'"),
        ("import exporter.recipe", "FORMATS is being made: import what needs it within functions"),
    ],
)
def test_a_module_may_raise_anything(module, told, environment):
    found = environment("exporter.formats", module=module, made="Made")
    done = run(found, "-m", "exporter", "report", "folder")
    assert done.returncode == 2
    assert told in done.stderr.replace("FORMAT_NAMES", "FORMATS")


def test_a_module_that_is_imported_before_exporter_is_found_all_the_same(environment):
    found = environment("exporter.formats", made="Made")
    code = "import broken_module, exporter; print(exporter.Recipe(formats=['made']).artifacts)"
    done = run(found, "-c", code)
    assert done.stdout == "(('made', 'float32'),)\n", done.stderr


LAYERS = """
import keras
import exporter
from exporter.lowrank.factorizers.dense import DenseFactorizer

class Own(keras.layers.Dense):
    pass

FINE = {Own: exporter.LayerKind(is_product=True)}
DENSE = {keras.layers.Dense: exporter.LayerKind()}
TEXT = {"Own": exporter.LayerKind()}
NUMBER = {Own: 3}
LIST = [Own]
SECOND = DenseFactorizer("Dense")
OWN = DenseFactorizer(Own)
"""


@pytest.fixture
def unmade(monkeypatch):
    """Has the tables of layers made anew, in the test and after it."""
    monkeypatch.setattr(plugins, "_used", {})
    for table in (kinds, factorizers):
        table.cache_clear()
    yield
    for table in (kinds, factorizers):
        table.cache_clear()


@pytest.mark.usefixtures("unmade")
def test_layer_kinds_and_factorizers_that_cannot_be_used_are_errors(
    environment, tmp_path, monkeypatch
):
    values = ("DENSE", "TEXT", "NUMBER", "LIST", "SECOND", "OWN", "FINE")
    entries = {value.lower(): value for value in values}
    environment("exporter.layers", "layers", LAYERS, **entries)
    environment("exporter.factorizers", "factorizers", LAYERS, **entries)
    monkeypatch.syspath_prepend(tmp_path)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(exporter.PluginError, match=r"Package layers 1.0 adds to exporter\.layers"):
        exporter.inspect(model)
    with pytest.raises(exporter.PluginError, match=r"adds to exporter\.factorizers"):
        factorizers()
    faults = {f"{plugin.group} {plugin.name}": plugin.fault for plugin in plugins.used()}
    usable = {name for name, fault in faults.items() if not fault}
    assert usable == {"exporter.layers fine", "exporter.factorizers own"}
    for name, reason in {
        "layers dense": "ValueError: the class Dense is taken by keras.src.layers.core.dense.Dense",
        "layers text": "TypeError: 'Own' is no class of layers",
        "layers number": "TypeError: Own has no exporter.LayerKind, but 3",
        "layers list": "TypeError: it is no mapping of layer classes, but list",
        "factorizers fine": "TypeError: it is no exporter.Factorizer, but dict",
        "factorizers second": "ValueError: the layer kind 'Dense' is taken by exporter.lowrank",
    }.items():
        assert reason in faults[f"exporter.{name}"]
