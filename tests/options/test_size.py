"""Sizes of free axes, as text and in recipes."""

import json

import pytest

from exporter.errors import RecipeError
from exporter.options.size import checked_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("96", (96,)),
        ("96,128", (96, 128)),
        ("image=96,96;tokens=128", {"image": (96, 96), "tokens": (128,)}),
    ],
)
def test_reads_text_and_keeps_what_json_makes_of_it(text, size):
    assert parse_size(text) == size
    assert checked_size(json.loads(json.dumps(size))) == size


@pytest.mark.parametrize("text", ["", "0", "-3", "96x96", "image=", "image=a", "1.5"])
def test_other_text_is_an_error_that_shows_the_form(text):
    with pytest.raises(RecipeError, match=r"such as 96,96; or .*Received"):
        parse_size(text)


@pytest.mark.parametrize("value", [None, True, [], [1, True], {"image": "96"}])
def test_other_values_are_errors(value):
    with pytest.raises(RecipeError, match="size must be"):
        checked_size(value)
