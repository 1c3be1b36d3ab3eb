import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from exporter.errors import RecipeError
from exporter.formats import FORMAT_NAMES, FORMATS
from exporter.formats.extras import NO_EXTRA, Extra
from exporter.options.groups import Cut, Goal, Group, Tuning
from exporter.options.rank import RANK_NAMES
from exporter.recipe import GROUP_OF, GROUPS, Recipe, recipe_schema


def choices_of(group: type[Group], name: str) -> tuple[str, ...]:
    (option,) = (option for option in group.options() if option.name == name)
    return option.value.parser["choices"]


WHOLE = st.integers(1, 10_000)
PATH = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60)
PATHS = st.none() | PATH
TOLERANCES = st.none() | st.floats(0, 1e6)
PARTS = st.floats(0, 1, exclude_min=True, exclude_max=True)
GOALS = st.one_of(
    st.fixed_dictionaries(
        {
            "rank": WHOLE
            | PARTS
            | st.sampled_from(RANK_NAMES)
            | st.dictionaries(st.text(min_size=1), WHOLE, min_size=1)
        }
    ),
    *(
        st.fixed_dictionaries({name: values})
        for name, values in {
            "energy": PARTS,
            "max_params": WHOLE | PARTS,
            "max_macs": WHOLE | PARTS,
            "max_size": WHOLE,
            "max_latency": PARTS,
            "max_drop": PARTS,
        }.items()
    ),
)
CHOICES = st.fixed_dictionaries(
    {
        "method": st.none() | st.sampled_from(choices_of(Cut, "method")),
        "cascade": st.booleans(),
        "calibration": WHOLE,
        "convolution": st.sampled_from(choices_of(Cut, "convolution")),
        "fold": st.booleans(),
        "finetune": st.integers(0, 1000),
        "train": st.sampled_from(choices_of(Tuning, "train")),
        "export_from": st.sampled_from(choices_of(Tuning, "export_from")),
        "batch_size": WHOLE,
        "learning_rate": st.floats(1e-12, 1),
        "distill": st.floats(0, 1),
        "temperature": st.floats(1, 100),
        "decay": st.floats(0, 10),
        "patience": st.integers(0, 100),
        "resume": st.booleans(),
        "distribute": st.sampled_from(choices_of(Tuning, "distribute")),
    }
)


def made(goal, choices, **others):
    if goal.get("rank") in ["none", "full"]:  # What adaptive training refuses; it may be a dict.
        choices = {**choices, "train": "factored"}
    return Recipe(**goal, **choices, **others)


RECIPES = st.builds(
    made,
    goal=GOALS,
    choices=CHOICES,
    model=PATHS,
    data=PATH,
    formats=st.lists(st.sampled_from([*FORMAT_NAMES, "all"]), min_size=1).map(tuple),
    output=PATHS,
    atol=TOLERANCES,
    rtol=TOLERANCES,
    seed=st.integers(0, 2**32 - 1),
    merge=st.booleans(),
    opset=st.integers(13, 18),
    labels=PATHS,
    description=st.none() | st.text(),
    force=st.booleans(),
)


SCHEMA = Draft202012Validator(recipe_schema())


@given(recipe=RECIPES)
def test_is_the_same_after_a_trip_through_json(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    SCHEMA.validate(recipe.to_dict())


@given(recipe=RECIPES)
def test_options_without_groups_are_read_as_manifests_once_had_them(recipe):
    flat = {name: value for group in recipe.to_dict().values() for name, value in group.items()}
    assert Recipe.from_dict(flat) == recipe


def test_json_names_every_option_in_its_group():
    named = {name: list(options) for name, options in json.loads(Recipe().to_json()).items()}
    assert named == {n: [o.name for o in group.options()] for n, group in GROUPS.items()}
    assert list(named) == [field.name for field in dataclasses.fields(Recipe)]


def test_groups_and_options_by_name_make_the_same_recipe():
    assert Recipe(goal=Goal(rank=3), cut=Cut(fold=False)) == Recipe(rank=3, fold=False)
    assert Recipe(cut=Cut(fold=False), merge=False) == Recipe(fold=False, merge=False)
    assert dataclasses.replace(Recipe(rank=3), cut=Cut(fold=False)) == Recipe(rank=3, fold=False)


def test_no_two_options_have_one_name_or_flag():
    options = [option for group in GROUPS.values() for option in group.options()]
    assert len(options) == len(GROUP_OF) == len({option.flag for option in options})


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("max_params", "200k", 200_000),
        ("max_params", "25%", 0.25),
        ("max_macs", "0.25", 0.25),
        ("max_macs", "1.5M", 1_500_000),
        ("max_size", "100KB", 100_000),
        ("max_latency", "50us", 5e-5),
        ("max_drop", "0.5%", 0.005),
        ("max_loss", "1%", 0.01),
        ("energy", "99%", 0.99),
    ],
)
def test_quantities_may_be_text_and_are_kept_as_numbers(name, text, number):
    recipe = Recipe(**{name: text})
    kept = recipe.to_dict()[GROUP_OF[name]][name]
    assert kept == pytest.approx(number)
    assert type(kept) is type(number)
    assert Recipe.from_dict({name: text}) == recipe
    SCHEMA.validate(recipe.to_dict())


def test_a_public_function_refuses_what_it_does_not_use():
    assert Recipe.for_verb("compress", ["cut", "seed"], {"seed": 3, "fold": False}).source.seed == 3
    with pytest.raises(
        RecipeError, match=r"compress does not use finetune\. It uses: seed, channels"
    ):
        Recipe.for_verb("compress", ["cut", "seed"], {"finetune": 10})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "or one of none, full, auto, stable, vbmf). Received: 0."),
        ({"rank": -1}, "Received: -1."),
        ({"rank": True}, "Received: True."),
        ({"rank": 2.0}, "Received: 2.0."),
        ({"rank": "20"}, "Received: '20'."),
        ({"rank": 1.0}, "Received: 1.0."),
        ({"rank": "half"}, "Received: 'half'."),
        ({"rank": {"a": 0.5}}, "Received: 0.5."),
        ({"rank": 3, "energy": 0.9}, "Give one of rank, energy, max_params, max_macs, max_size"),
        ({"energy": 0.9, "max_drop": 0.1}, "Received: energy, max_drop."),
        ({"energy": 1.0}, "energy must be a number of more than 0 and less than 1. Received: 1.0."),
        ({"max_params": 0}, "max_params must be a whole number >= 1, or a part of the baseline's"),
        ({"max_params": 2.5}, "Received: 2.5."),
        ({"max_params": "2.5"}, "Received: 2.5."),
        ({"max_macs": "100%"}, "less than 1. Received: 1.0."),
        ({"max_size": 2.5}, "Received: 2.5."),
        ({"max_size": "0KB"}, "max_size must be a whole number >= 1. Received: 0."),
        ({"max_size": "big"}, "max_size cannot be read. Give a size such as 250KB, 244KiB or"),
        ({"max_latency": "50"}, "max_latency cannot be read. Give a time such as 50us"),
        ({"max_drop": "200%"}, "max_drop must be a number of more than 0 and less than 1. Rec"),
        ({"finetune": -1}, "finetune must be a number of epochs >= 0. Received: -1."),
        ({"batch_size": 0}, "batch_size must be a number of samples >= 1. Received: 0."),
        (
            {"train": "both"},
            "train must be one of factored, adaptive, projected, projected+factored.",
        ),
        (
            {"train": "adaptive", "rank": "full"},
            "train 'adaptive' divides what low ranks take. Received: rank 'full'. Give another",
        ),
        ({"train": "adaptive", "rank": "none"}, "Received: rank 'none'. Give another rank"),
        ({"distill": 1.5}, "distill must be a number of at least 0 and at most 1. Received: 1.5."),
        ({"temperature": 0.5}, "temperature must be a number of at least 1. Received: 0.5."),
        ({"learning_rate": math.nan}, "learning_rate must be a number of at least 1e-12."),
        ({"resume": 1}, "resume must be True or False. Received: 1."),
        ({"max_latency": 0}, "max_latency must be a number of more than 0. Received: 0."),
        ({"max_drop": -0.1}, "Received: -0.1."),
        ({"method": "pca"}, "method must be one of svd, whitened, kfac. Received: 'pca'."),
        ({"convolution": None}, "one of channel, spatial, tucker2. Received: None."),
        ({"calibration": 0}, "calibration must be a number of samples >= 1. Received: 0."),
        ({"cascade": 1}, "cascade must be True or False. Received: 1."),
        ({"rank": [1, 2]}, "Received: [1, 2]."),
        ({"rank": {}}, "rank names no layer"),
        ({"rank": {"a": 0}}, "rank of layer 'a' must be a whole number >= 1"),
        ({"rank": {"a": "full"}}, "Received: 'full'."),
        ({"rank": {3: 1}}, "Received: 3."),
        ({"formats": "tflite"}, "formats must be a list of names. Received: 'tflite'."),
        ({"formats": None}, "Received: None."),
        ({"formats": ()}, f"formats is empty. Known: {', '.join(FORMAT_NAMES)}."),
        ({"formats": ["tfl"]}, "Unknown name 'tfl' in formats. Known: saved_model, tflite, onnx"),
        ({"formats": ["TFlite"]}, "ort, c, all. Did you mean 'tflite'?"),
        ({"quantize": ["int-8"]}, "mixed, all. Did you mean 'int8'?"),
        ({"method": "whiten"}, "Received: 'whiten'. Did you mean 'whitened'?"),
        ({"rank": "atuo"}, "Received: 'atuo'. Did you mean 'auto'?"),
        ({"scale": "unti"}, "Received: 'unti'. Did you mean 'unit'?"),
        ({"formats": [3]}, "Unknown name 3 in formats."),
        ({"quantize": "int8"}, "quantize must be a list of names. Received: 'int8'."),
        ({"quantize": ["float32"]}, "Unknown name 'float32' in quantize. Known: none, float16"),
        (
            {"formats": ("saved_model", "tflite"), "quantize": ("int8",)},
            "quantize must name a variant of each format; saved_model has none. Received: int8.",
        ),
        (
            {"formats": ("onnx",), "quantize": ("none", "int16x8")},
            "quantize 'int16x8' is a variant of the formats tflite. Received: formats onnx.",
        ),
        ({"quantize": ["mixed"], "rounding": "nearest"}, "mixed' chooses the bits of each layer"),
        ({"io_type": "int8"}, "io_type 'int8' needs a variant that computes in integers."),
        ({"granularity": "row"}, "granularity must be one of auto, tensor, channel."),
        ({"ranges": "max"}, "ranges must be one of minmax, percentile, mse, entropy."),
        ({"model": ""}, "model must be a path as text. Received: ''."),
        ({"model": 3}, "Received: 3."),
        ({"imports": "a.py"}, "imports must be a list of Python files or modules."),
        ({"imports": [""]}, "imports must be a list of Python files or modules."),
        ({"output": ""}, "output must be a path as text. Received: ''."),
        ({"data": ""}, "data must be a name or a path as text. Received: ''."),
        ({"data": None}, "Received: None."),
        ({"atol": -1e-9}, "atol must be a number of at least 0. Received: -1e-09."),
        ({"atol": float("nan")}, "Received: nan."),
        ({"rtol": float("inf")}, "rtol must be a number of at least 0. Received: inf."),
        ({"rtol": "1e-3"}, "Received: '1e-3'."),
        ({"rtol": False}, "Received: False."),
        ({"seed": -1}, "seed must be a whole number within 0 and 4294967295. Received: -1."),
        ({"seed": 2**32}, "Received: 4294967296."),
        ({"seed": 1.5}, "Received: 1.5."),
        ({"opset": 12}, "opset must be a whole number within 13 and 18. Received: 12."),
        ({"opset": 19}, "Received: 19."),
        ({"opset": "17"}, "Received: '17'."),
        ({"labels": ""}, "labels must be a path as text. Received: ''."),
        ({"labels": ["a"]}, "labels must be a path as text. Received: ['a']."),
        ({"description": 3}, "description must be text. Received: 3."),
        ({"merge": 1}, "merge must be True or False. Received: 1."),
        ({"force": "yes"}, "force must be True or False. Received: 'yes'."),
    ],
)
def test_refuses_values_out_of_range_and_names_what_it_received(changes, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe(**changes)
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_dict(changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The recipe is not JSON"),
        ("", "The recipe is not JSON"),
        ("[1]", "A recipe is a JSON object. Received: list."),
        ("null", "Received: NoneType."),
        ('{"ranks": 3}', "Unknown options ['ranks']. Known: ['allow_poor_baseline', 'atol',"),
        ('{"ranks": 3, "max-size": 4}', "'train']. Did you mean 'max_size', 'rank'?"),
        ('{"goal": {"ranks": 3}}', "Received: {'ranks': 3}. Did you mean 'rank'?"),
        ('{"goal": {"ranks": 3}}', "goal must be an object with options of ['rank',"),
        ('{"goal": 3}', "Received: 3."),
        ('{"atol": NaN}', "Received: nan."),
    ],
)
def test_refuses_json_that_is_no_recipe(text, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_json(text)


def test_all_stands_for_every_installed_format_and_repetitions_count_once(monkeypatch):
    usual = ("saved_model", "tflite", "onnx", "ort")
    monkeypatch.setattr(FORMATS["c"], "extra", NO_EXTRA)
    assert Recipe(formats=("all",)).export.formats == (*usual, "c")
    monkeypatch.setattr(FORMATS["c"], "extra", Extra("micro", ("no-such-distribution",)))
    assert Recipe(formats=("all",)).export.formats == usual
    assert Recipe(formats=("c",)).export.formats == ("c",)
    repeated = Recipe(formats=["onnx", "all", "onnx"])
    assert repeated.export.formats == ("onnx", "saved_model", "tflite", "ort")


def test_a_mapping_of_ranks_cannot_change_under_the_recipe():
    ranks = {"a": 3}
    recipe = Recipe(rank=ranks)
    ranks["a"] = 4
    assert recipe.goal.rank == {"a": 3}


@pytest.mark.parametrize(
    ("goal", "label"),
    [
        ({}, "rank20"),
        ({"rank": 7}, "rank7"),
        ({"rank": 0.25}, "rank0.25"),
        ({"rank": "full"}, "rank-full"),
        ({"rank": {"a": 3}}, "rank-mixed"),
        ({"energy": 0.99}, "energy-0.99"),
        ({"max_size": 250_000}, "max-size-250000"),
        ({"max_latency": 5e-5}, "max-latency-5e-05"),
    ],
)
def test_goal_label(goal, label):
    assert Recipe(**goal).goal.label == label


def test_all_variants_are_those_that_a_format_has():
    recipe = Recipe(formats=("saved_model", "onnx"), quantize=("all",))
    assert recipe.quantization.quantize == ("none", "float16", "dynamic", "int8")
    assert recipe.artifacts == (
        ("saved_model", "float32"),
        ("onnx", "float32"),
        ("onnx", "float16"),
        ("onnx", "dynamic"),
        ("onnx", "int8"),
    )
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_only_variants_that_compute_in_integers_are_calibrated():
    assert not Recipe(quantize=("none", "float16", "dynamic")).calibrates
    assert Recipe(quantize=("none", "int8")).calibrates


@pytest.mark.parametrize("name", ["model", "data", "output", "labels"])
@pytest.mark.parametrize("path", ["a\0b", "\ud800", "/dev/zero", "x" * 300])
def test_paths_that_cannot_be_read_to_an_end_are_refused(name, path):
    with pytest.raises(RecipeError, match=r"path (that can be followed|must lead)"):
        Recipe(**{name: path})


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), -(10**400)])
@pytest.mark.parametrize("name", ["rank", "energy", "max_params", "max_size", "atol", "finetune"])
def test_numbers_that_no_library_knows_are_refused(name, value):
    with pytest.raises(RecipeError, match=name):
        Recipe(**{name: value})


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"seed": ' + "9" * 5000 + "}"])
def test_json_without_end_is_refused(text):
    with pytest.raises(RecipeError, match="The recipe is not JSON"):
        Recipe.from_json(text)
