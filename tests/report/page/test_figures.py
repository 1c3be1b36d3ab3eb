"""Figures of the report as text."""

import io
import re

import pytest

from exporter.report.page.figures import bars, style


@pytest.mark.parametrize("values", [[8.0, 29.0], [12.0, 29.0], [3.0, 4000.0]])
def test_ticks_of_a_logarithmic_axis_are_numbers_and_not_formulas(values):
    with style():
        drawn = io.StringIO()
        bars(["a", "b"], {"compressed": values}, "µs", log=True).savefig(drawn, format="svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.getvalue())
    assert not [text for text in texts if "$" in text]
    assert [text for text in texts if re.fullmatch(r"[1-9],?0+", text)]
