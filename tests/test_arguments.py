"""The arguments of the command line: verbs, where options may stand, and the table of options."""

import subprocess
from pathlib import Path

import pytest

from exporter import arguments as module
from exporter.arguments import SHELLS, VERBS, completion, given, parse
from exporter.errors import RecipeError
from exporter.formats.extras import Extra
from exporter.recipe import GROUP_OF, GROUPS, Recipe
from scripts.lib.options_table import options_table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "verb", "values"),
    [
        ([], "run", {}),
        (["--rank", "20", "--format", "tflite"], "run", {"rank": 20, "formats": ["tflite"]}),
        (["run", "m.keras"], "run", {"model": "m.keras"}),
        (["m.keras", "--rank=a=3"], "run", {"model": "m.keras", "rank": {"a": 3}}),
        (
            ["--import", "a,b.py", "m.keras", "--import=c"],
            "run",
            {"model": "m.keras", "imports": ["a,b.py", "c"]},
        ),
        (
            ["verify", "--seed=3", "--", "-a.tflite", "b c.keras"],
            "verify",
            {"artifact": "./-a.tflite", "model": "b c.keras", "seed": 3, "data": "none"},
        ),
        (
            ["benchmark", "a.tflite", "--threads", "1,2", "b.onnx", "--operators", "--size=8"],
            "benchmark",
            {"files": ["a.tflite", "b.onnx"], "threads": [1, 2], "operators": True, "size": (8,)},
        ),
        (
            ["--max-growth", "5%", "compare", "old", "--max-loss=1%", "new/manifest.json"],
            "compare",
            {"old": "old", "new": "new/manifest.json", "max_growth": 0.05, "max_loss": 0.01},
        ),
        (["inspect"], "inspect", {}),
        (["--json", "doctor"], "doctor", {}),
        (["inspect", "m.keras", "--no-fold"], "inspect", {"model": "m.keras", "fold": False}),
        (["--seed", "3", "inspect", "m.keras"], "inspect", {"model": "m.keras", "seed": 3}),
        (["--json", "inspect", "-q", "m.keras"], "inspect", {"model": "m.keras"}),
        (
            ["--output", "inspect", "compress", "--rank", "0.25", "m.keras"],
            "compress",
            {"model": "m.keras", "rank": 0.25, "output": "inspect"},
        ),
        (
            ["export", "m.keras", "--quantize", "none,int8", "--quantize", "int4"],
            "export",
            {"model": "m.keras", "quantize": ["none", "int8", "int4"], "data": "none"},
        ),
        (
            ["--atol=1", "verify", "a.tflite", "--data", "d.npz", "m.keras"],
            "verify",
            {"artifact": "a.tflite", "model": "m.keras", "atol": 1.0, "data": "d.npz"},
        ),
    ],
)
def test_options_stand_before_or_after_the_verb(arguments, verb, values):
    options = parse(arguments)
    assert options.verb == verb
    assert given(options) == values


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "source: {model: m.keras, data: d.npz}\ngoal: {rank: 3}\nexport: {force: true}"
    (tmp_path / "r.yaml").write_text(text)


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (
            ["--recipe=r.yaml"],
            {"model": "m.keras", "data": "d.npz", "rank": 3, "force": True},
        ),
        (
            ["--max-size=9KB", "--recipe", "r.yaml", "n.keras", "--no-force", "--json"],
            {"model": "n.keras", "data": "d.npz", "max_size": 9000, "force": False},
        ),
        (
            ["recipe", "r.yaml", "n.keras"],
            {"model": "n.keras", "data": "d.npz", "rank": 3, "force": True},
        ),
        (["inspect", "--recipe=r.yaml"], {"model": "m.keras", "data": "d.npz"}),
        (["export", "--recipe=r.yaml"], {"model": "m.keras", "data": "d.npz", "force": True}),
        (["recipe", "--schema"], {"schema": True}),
    ],
)
def test_options_replace_those_of_a_recipe_of_which_a_verb_takes_what_it_uses(arguments, values):
    assert given(parse(arguments)) == values


@pytest.mark.usefixtures("recipe")
def test_a_contradiction_between_recipe_and_options_names_the_line():
    with pytest.raises(RecipeError, match=r"r.yaml, line 2, field goal.rank: rank 'auto' on a"):
        Path("r.yaml").write_text("\ngoal: {rank: auto}")
        parse(["--recipe=r.yaml", "--target=here"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "m.keras", "--rank", "3"],
        ["compress", "m.keras", "--atol", "1"],
        ["export", "m.keras", "--finetune", "3"],
        ["export"],
        ["verify"],
        ["verify", "a.tflite", "m.keras", "--format", "onnx"],
        ["m.keras", "again.keras"],
        ["benchmark"],
        ["benchmark", "a.tflite", "--rank", "3"],
        ["compare", "old"],
        ["compare", "old", "new", "--threads", "1"],
        ["doctor", "m.keras"],
        ["doctor", "--rank", "3"],
        ["doctor", "--recipe", "phone"],
        ["export", "--recipe", "phone"],
        ["--schema"],
        ["--nonsense"],
        ["--method", "pca"],
    ],
)
def test_what_a_verb_does_not_use_is_a_usage_error(arguments):
    with pytest.raises(RecipeError, match=r"See: exporter( \w+)? --help$|Did you mean"):
        parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--quantise", "int8", "m.keras"], "m.keras. Did you mean '--quantize'?"),
        (["export", "m.keras", "--fromat=onnx"], "--fromat=onnx. Did you mean '--format'?"),
        (["inspect", "m.keras", "--no-merg", "--jsn"], "Did you mean '--no-merge', '--json'?"),
        (
            ["inspect", "m.keras", "--finetune", "3"],
            "unrecognized arguments: --finetune 3. See: exporter inspect --help",
        ),
        (
            ["m.keras", "inspect.keras"],
            "unrecognized arguments: inspect.keras. See: exporter --help",
        ),
        (["verfy", "a.tflite", "m.keras"], "'verfy' is no verb. Did you mean 'verify'?"),
        (["frobnicate", "m.keras"], "'frobnicate' is no verb and no file. Verbs: run, inspect,"),
        (["--finetune", "1.5"], "--finetune: must be a number of epochs >= 0. Received: '1.5'."),
        (["--atol", "abc"], "--atol: must be a number of at least 0. Received: 'abc'."),
        (["m.keras", "--dry-rnu"], "--dry-rnu. Did you mean '--dry-run'?"),
        (["--recip=phone"], "--recip=phone. Did you mean '--recipe'?"),
        (["recipe", "--shema"], "Did you mean '--schema'?"),
        (["--rank=3", "Inspct"], "'Inspct' is no verb. Did you mean 'inspect'?"),
        (
            ["--method", "whiten"],
            "one of svd, whitened, kfac. Received: 'whiten'. Did you mean 'wh",
        ),
    ],
)
def test_what_is_mistyped_is_answered_with_what_is_wanted_or_close(arguments, told):
    with pytest.raises(RecipeError) as raised:
        parse(arguments)
    assert told in str(raised.value)


@pytest.mark.parametrize("arguments", [["--max-size", "big"], ["--rank", "abc"]])
def test_quantities_that_cannot_be_read_are_errors_of_the_recipe(arguments):
    with pytest.raises(RecipeError, match="Received: '"):
        parse(arguments)


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_fits_a_terminal_of_80_columns(verb, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"] if verb is None else [verb, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "exit codes:" in text


def test_a_run_takes_every_option(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for group in GROUPS.values():
        for option in group.options():
            assert option.flag in text or option.name == "model"


def test_defaults_of_the_command_line_are_those_of_the_recipe():
    assert Recipe(**given(parse([]))) == Recipe()


def test_the_documentation_has_the_table_of_options():
    page = (ROOT / "docs" / "options.md").read_text()
    assert options_table() in page, "run scripts/generate"
    assert all(f"`{name}`" in page for name in GROUP_OF)


def test_usage_errors_are_those_of_the_verb():
    told = "argument --data: expected one argument. See: exporter inspect --help"
    with pytest.raises(RecipeError, match=f"^{told}$"):
        parse(["inspect", "m.keras", "--data"])


COMPLETE = """
complete_words() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_exporter
  echo "${COMPREPLY[*]}"
}
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("exporter ins", "inspect"),
        ("exporter --dry", "--dry-run"),
        ("exporter m.keras --quantize int", "int8 int16x8 int4"),
        ("exporter --method ''", "svd whitened kfac"),
        ("exporter inspect --recipe ph", "phone"),
        ("exporter export --format o", "onnx ort"),
        ("exporter verify mod", "model.tflite"),
    ],
)
def test_bash_completes_verbs_options_values_and_files(words, completed, tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "model.tflite").touch()
    script = f"{completion('bash')}{COMPLETE}complete_words {words}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == completed


def test_there_is_a_script_for_each_shell():
    pytest.importorskip("shtab")
    assert len({completion(shell) for shell in SHELLS}) == len(SHELLS)


def test_completion_tells_of_a_shell_or_an_extra_that_is_not_there(monkeypatch):
    with pytest.raises(RecipeError, match=r"Received: 'bsh'\. Did you mean 'bash'"):
        completion("bsh")
    monkeypatch.setattr(module, "COMPLETION", Extra("completion", ("no-such-package",)))
    with pytest.raises(RecipeError, match="needs the extra 'completion'"):
        completion("bash")
