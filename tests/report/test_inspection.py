"""What an inspection prints. What it finds is tested with the package's inspection."""

import io

from rich.console import Console

import exporter
from exporter.report.inspection import print_inspection
from exporter.report.tables import WIDTH


def inspected(model, width=WIDTH):
    stream = io.StringIO()
    print_inspection(exporter.inspect(model), Console(file=stream, width=width))
    return stream.getvalue()


def test_inspection_shows_layers_spectra_and_options(build):
    text = inspected(build("sequential_mlp"))
    # By the first word of each, the first one where there are several.
    rows = {line.split()[0]: line for line in reversed(text.splitlines()) if line.split()}
    layer = rows["hidden_1"]
    for fact in ("Dense", "36 × 40", "1,480", "18.9", "█"):
        assert fact in layer
    assert "of the weights" in text
    assert "every layer stays" in rows["--energy"]
    assert "hidden_1" in rows["--max-params"]


def test_inspection_says_what_cannot_be_done(build):
    text = inspected(build("tiny"))
    assert "Rank must be at most 6" in text
