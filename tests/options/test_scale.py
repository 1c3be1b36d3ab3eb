import pytest

from exporter.errors import RecipeError
from exporter.options.scale import checked_scale, parse_scale


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("auto", "auto"),
        ("torch", "torch"),
        ("0,255", ((0.0,), (255.0,))),
        ("1/2/3,4/5/6", ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))),
        ("image=unit;depth=0,1000", {"image": "unit", "depth": ((0.0,), (1000.0,))}),
    ],
)
def test_reads_text_and_keeps_what_json_makes_of_it(text, scale):
    import json

    assert parse_scale(text) == scale
    assert checked_scale(json.loads(json.dumps(scale))) == scale


def test_numbers_need_no_lists():
    assert checked_scale([0, 255]) == ((0.0,), (255.0,))


@pytest.mark.parametrize(
    "value", ["", "half", "1", "1,0", "1,2,3", "1/2,3/4/5", "x=half", "nan,1", "1,inf"]
)
def test_refuses_others(value):
    with pytest.raises(RecipeError, match="scale must be one of auto, none, unit"):
        parse_scale(value)
