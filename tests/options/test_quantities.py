import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.options.quantities import parse_amount, parse_bytes, parse_part, parse_seconds


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_amount, "200000", 200_000),
        (parse_amount, "200k", 200_000),
        (parse_amount, " 1.5M ", 1_500_000),
        (parse_amount, "0.5e3", 500),
        (parse_amount, "25%", 0.25),
        (parse_amount, "0.25", 0.25),
        (parse_amount, "2.5", 2.5),
        (parse_amount, "1.1M", 1_100_000),
        (parse_bytes, "870000", 870_000),
        (parse_bytes, "250KB", 250_000),
        (parse_bytes, "244 KiB", 249_856),
        (parse_bytes, "1.5mb", 1_500_000),
        (parse_seconds, "50us", 5e-5),
        (parse_seconds, "50 µs", 5e-5),
        (parse_seconds, "1.2ms", 1.2e-3),
        (parse_part, "0.5%", 0.005),
        (parse_part, "0.005", 0.005),
        (parse_part, ".5", 0.5),
    ],
)
def test_quantities_are_read_with_their_units(parse, text, value):
    assert parse(text) == pytest.approx(value)
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (
            parse_amount,
            "many",
            "Give a number such as 200000 or 200k, or a part such as 25%. Received: 'many'.",
        ),
        (parse_amount, "-3", "Received: '-3'."),
        (parse_amount, "3KB", "Received: '3KB'."),
        (parse_bytes, "1.2.3KB", "Give a size such as 250KB"),
        (parse_bytes, "1e999", "Received: '1e999'."),
        (parse_seconds, "50", "Give a time such as 50us, 1.2ms or 0.1s. Received: '50'."),
        (parse_part, "half", "Give a part such as 0.5% or 0.005."),
        (parse_part, "", "Received: ''."),
    ],
)
def test_what_is_no_quantity_is_refused(parse, text, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize("parse", [parse_amount, parse_bytes, parse_seconds, parse_part])
@given(text=st.text())
def test_any_text_is_a_quantity_or_refused(parse, text):
    try:
        assert parse(text) >= 0
    except RecipeError as error:
        assert repr(text) in str(error)
