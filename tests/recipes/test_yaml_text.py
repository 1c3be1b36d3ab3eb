import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.recipes.yaml_text import parse_yaml, to_yaml

# A surrogate is half a character; names of files may have one, and text of JSON has pairs of them.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["no", "1e5", "010", "0x1f", "~", "<<", "2020-01-01", "12:30", "a: b #c", "", ".5", "\udc80"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_is_read_back(values):
    assert parse_yaml(to_yaml(values))[0] == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("1e-3", 0.001),
        ("010", 10),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2_and_of_json(text, value):
    assert parse_yaml(text)[0] == value


def test_lines_are_those_of_the_keys():
    assert parse_yaml("a:\n  b: 1\n\nc: {d: 2}")[1] == {
        ("a",): 1, ("a", "b"): 2, ("c",): 4, ("c", "d"): 4,
    }  # fmt: skip
