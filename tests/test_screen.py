"""How results print."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import exporter
from exporter.screen import COLUMNS, LINES, fits_screen

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text().partition("## Errors")[0]
RESULTS = [
    kind
    for name in re.findall(r"^::: exporter\.(\w+)$", API, re.MULTILINE)
    if dataclasses.is_dataclass(kind := getattr(exporter, name))
]
MUCH = {f"layer{number}": [np.ones((9, 9)), "word " * 99] for number in range(30)}


def test_there_are_results():
    assert {exporter.Report, exporter.Compressed, exporter.Dataset, exporter.Sweep} <= {*RESULTS}


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("value", [[MUCH] * 9, np.ones((9, 99)), "x" * 999], ids=type)
def test_a_public_result_fits_a_screen_whatever_it_holds(kind, value):
    result = object.__new__(kind)
    for each in dataclasses.fields(kind):
        object.__setattr__(result, each.name, value)
    lines = repr(result).splitlines()
    assert lines[0].startswith(kind.__name__)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@fits_screen
@dataclass(frozen=True)
class Found:
    name: str
    weights: object
    notes: tuple = ()
    sizes: dict = field(default_factory=dict)


def test_arrays_are_told_by_type_and_shape_and_defaults_are_left_out():
    found = Found("a", np.zeros((2, 3), "float32"), sizes={"b": np.int8([1])})
    assert repr(found) == "Found(name='a', weights=<float32 (2, 3)>, sizes={'b': <int8 (1,)>})"
    assert repr(Found("a", np.float64(2.5))) == "Found(name='a', weights=np.float64(2.5))"


def test_what_does_not_fit_is_left_out_from_the_inside():
    inner = Found("inner", [[list(range(9))]], ("note" * 9,))
    text = repr(Found("outer", [inner] * 3, ("first", "second")))
    assert "name='inner'" in text
    text = repr(Found("outer", {name: [inner] * 9 for name in "abcd"}))
    assert "name='outer'" in text
    assert "name='inner'" not in text
