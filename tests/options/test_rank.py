"""Ranks as text. What a recipe refuses is tested with the recipe."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.options.rank import RANK_NAMES, parse_rank


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("20", 20),
        (" 20 ", 20),
        ("full", "full"),
        ("dense_1=32", {"dense_1": 32}),
        (" body/a = 3 , b=4", {"body/a": 3, "b": 4}),
        ("0", 0),  # A whole number; the recipe refuses it.
    ],
)
def test_rank_is_parsed(text, rank):
    assert parse_rank(text) == rank


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Rank cannot be read: give a whole number >= 1, a part such as 0.25, 'none', 'full'"),
        ("twenty", "Received: 'twenty'."),
        ("ful", "Received: 'ful'. Did you mean 'full'?"),
        ("2.5", "Received: '2.5'."),
        ("a=", "Received: 'a='."),
        ("a=x", "Received: 'a=x'."),
        ("=3", "must read 'layer=rank'. Received: '=3'."),
        ("a=1,", "must read 'layer=rank'. Received: ''."),
        ("a=1,b", "Received: 'b'."),
        ("a=1,a=2", "Layer 'a' is given two ranks in 'a=1,a=2'."),
    ],
)
def test_ranks_that_cannot_be_parsed_are_refused(text, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_rank(text)


@given(st.text())
def test_any_text_is_a_rank_or_refused(text):
    try:
        rank = parse_rank(text)
    except RecipeError:
        return
    assert rank in RANK_NAMES or isinstance(rank, (int, float, dict))
