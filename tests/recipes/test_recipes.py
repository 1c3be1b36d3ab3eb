import json
import os
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import exporter
from exporter.errors import RecipeError
from exporter.recipe import Recipe, recipe_schema
from exporter.recipes import READY, load_recipe, read_recipe, recipe_text

YAML = """
goal:
  max_size: 250KB
cut:
  fold: false  # As text of YAML 1.1 would be.
tuning:
  learning_rate: 1e-3
export:
  formats: [tflite, onnx]
  description: "no"
"""
TOML = """
goal.max_size = "250KB"
[cut]
fold = false
[ tuning ]
learning_rate = 1e-3
[export]
formats = ["tflite", "onnx"]
description = "no"
"""
JSON = json.dumps(
    {
        "goal": {"max_size": "250KB", "rank": None},
        "cut": {"fold": False},
        "tuning": {"learning_rate": 1e-3},
        "export": {"formats": ["tflite", "onnx"], "description": "no"},
    },
    indent="\t",
)
SAME = Recipe(
    max_size=250_000, fold=False, learning_rate=1e-3, formats=("tflite", "onnx"), description="no"
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a file into the current folder, which is a new one."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="recipe.yaml"):
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write


@pytest.mark.parametrize(
    ("name", "text"), [("r.yaml", YAML), ("r.yml", YAML), ("r.json", JSON), ("r.toml", TOML)]
)
def test_yaml_json_and_toml_say_the_same(file, name, text):
    assert load_recipe(file(text, name)) == SAME


@pytest.mark.parametrize("name", READY)
def test_ready_recipes_are_what_their_schema_says_and_survive_being_written(name, file):
    recipe = load_recipe(name)
    assert recipe != Recipe()
    assert load_recipe(file(recipe_text(recipe, "A comment"))) == recipe
    options = read_recipe(name).options
    assert recipe == Recipe(**options)


def test_the_files_in_the_package_are_the_ready_recipes():
    files = Path(exporter.recipes.__file__).parent.glob("*.yaml")
    assert {path.stem for path in files} == set(READY)


SCHEMA = Draft202012Validator(recipe_schema(written=True))


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({}, True),
        ({"goal": {"max_size": "250KB"}, "export": {"formats": ["onnx"]}}, True),
        ({"goal": {"max_params": 0.25, "rank": None}}, True),
        ({"goals": {}}, False),
        ({"goal": {"rnk": 3}}, False),
        ({"cut": {"method": "pca"}}, False),
    ],
)
def test_schema_for_editors_takes_text_for_quantities_and_no_unknown_key(values, valid, file):
    SCHEMA.check_schema(SCHEMA.schema)
    assert SCHEMA.is_valid(values) == valid
    try:
        load_recipe(file(json.dumps(values), "r.json"))
    except RecipeError:
        assert not valid
    else:
        assert valid


def test_a_change_replaces_an_option_and_one_way_of_choosing_ranks_another(file):
    name = file(YAML)
    assert load_recipe(name, description="yes", fold=True).goal.max_size == 250_000
    assert load_recipe(name, rank=3).goal.rank == 3
    assert load_recipe(name, rank=3).goal.max_size is None
    assert load_recipe(name, rank=None).goal.max_size == 250_000


def test_paths_are_relative_to_the_current_folder(file):
    Path("below").mkdir()
    name = file("source: {data: x.npz}", "below/recipe.yaml")
    assert load_recipe(name).source.data == "x.npz"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.yaml", "goal:\n  rnak: 3", "r.yaml, line 2, field goal.rnak: unknown option. Known: r"),
        ("r.yaml", "goal:\n  rnak: 3", "Did you mean 'rank'?"),
        ("r.yaml", "goals: {}", "r.yaml, line 1, field goals: unknown group."),
        ("r.yaml", "rank: 3", "field rank: unknown group. Known: source, goal, cut, tuning"),
        ("r.yaml", "rank: 3", "It belongs into group goal."),
        ("r.yaml", "cut: {rank: 3}", "field cut.rank: unknown option."),
        ("r.yaml", "goal: 3", "line 1, field goal: must have options of rank, energy"),
        ("r.yaml", "- 1", "r.yaml: a recipe must have the groups source, goal"),
        ("r.yaml", "", "Received: nothing."),
        ("r.yaml", "\n\ngoal:\n  rank: 0", "r.yaml, line 4, field goal.rank: rank must be a whole"),
        ("r.yaml", "cut:\n  fold: no", "line 2, field cut.fold: fold must be True or False. Rec"),
        ("r.yaml", "cut:\n  fold: null", "line 2, field cut.fold: fold must be True or False."),
        ("r.json", '{"goal":\n{"max_size": "big"}}', "r.json, line 2, field goal.max_size: max_"),
        ("r.toml", '[goal]\nmax_size = "big"', "r.toml, line 2, field goal.max_size: max_size"),
        ("r.toml", "goal = {rank = 0}", "r.toml, line 1, field goal.rank: rank must be"),
        ("r.toml", "goal.rank = 0", "r.toml, line 1, field goal.rank: rank must be"),
        ("r.toml", "[goal]\nrank = x", "r.toml: it is no TOML: Invalid value (at line 2"),
        ("r.yaml", "goal:\n  rank: 3\n  energy: 0.5", "line 2, field goal.rank: Give one of"),
        (
            "r.yaml",
            "export:\n  formats: [onnx]\nquantization:\n  quantize: [int16x8]",
            "r.yaml, line 4, field quantization.quantize: quantize",
        ),
        ("r.yaml", "export:\n  formats: [onx]", "line 2, field export.formats: Unknown name 'onx'"),
        ("r.yaml", "goal: {rank: 3", "r.yaml: it is no YAML that can be read: line 1, column 15"),
        ("r.yaml", "goal: &a {rank: 3}\ncut: *a", "line 2, column 6: aliases and tags are not"),
        ("r.yaml", "goal: !!python/name:os.x", "line 1, column 7: aliases and tags are not"),
        ("r.yaml", "goal: {rank: 3}\ngoal: {}", "line 2, column 1: 'goal' is given twice."),
        ("r.json", '{"goal": {"rank": 3, "rank": 4}}', "'rank' is given twice."),
        ("r.yaml", "? [a]\n: 3", "unhashable"),
        ("r.yaml", "a: \x00", "unacceptable character"),
        ("r.yaml", "[" * 10_000, "nested too deeply"),
        ("r.toml", "a = " + "[" * 10_000, "no TOML"),
        ("r.yaml", f"goal: {{rank: {'9' * 5000}}}", "no YAML that can be read: Exceeds the limit"),
        ("r.yaml", "#" * 2**20 + "\n", "at most 1,048,576 bytes"),
        ("r.txt", "", "must be a file that ends in .yaml, .yml, .json, .toml"),
    ],
)  # fmt: skip
def test_faults_are_told_with_line_and_field(file, name, text, told):
    with pytest.raises(RecipeError, match=re.escape(told)):
        load_recipe(file(text, name))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("phon", "Did you mean 'phone'?"),
        ("nothing.yaml", "which is not there"),
        ("pipe.yaml", "device, a pipe"),
        (".", "must be a file"),
        ("a\0.yaml", "path that can be followed"),
    ],
)
def test_what_is_no_file_is_refused(source, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    with pytest.raises(RecipeError, match=re.escape(told)):
        load_recipe(source)


def test_a_file_that_is_no_text_is_refused(file):
    Path(file("")).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe("recipe.yaml")
