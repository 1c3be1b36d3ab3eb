"""Figures of the report as text."""

import io
import re

import numpy as np
import pytest

from exporter.report.page.figures import bars, confusion, style, svg


@pytest.mark.parametrize("values", [[8.0, 29.0], [12.0, 29.0], [3.0, 4000.0]])
def test_ticks_of_a_logarithmic_axis_are_numbers_and_not_formulas(values):
    with style():
        drawn = io.StringIO()
        bars(["a", "b"], {"compressed": values}, "µs", log=True).savefig(drawn, format="svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.getvalue())
    assert not [text for text in texts if "$" in text]
    assert [text for text in texts if re.fullmatch(r"[1-9],?0+", text)]


@pytest.mark.parametrize("count", [2, 60])
def test_long_names_leave_room_to_draw_in(count):
    """Matplotlib warns, and tests fail by that, where axes collapse."""
    names = [f"{number}/{'stage/' * 20}expand_convolution" for number in range(count)]
    with style():
        drawn = svg(bars(names, {"error": [1.0] * count}, "%", log=False), "bars")
        svg(confusion(np.eye(count, dtype=int), names), "confusion")
    assert ">0/stage/stage/stage/stage/s…<" in drawn
    assert ">age/stage/expand_convolution<" in drawn
