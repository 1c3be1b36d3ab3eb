"""The page and the tables of a sweep."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from exporter.data.metrics import Metric
from exporter.tradeoff.front import UNCOMPRESSED, Point, Sweep, choose, pareto_front
from exporter.tradeoff.page import write_page
from exporter.tradeoff.table import print_sweep, write_tables

EVIL = "</script><b>&"


@pytest.fixture
def found(tmp_path):
    points = [
        Point(
            goal,
            "tflite",
            "int8",
            "trial",
            path,
            size,
            latency,
            loss,
            loss + 0.01,
            Metric("accuracy", 0.9 - loss, 100),
            1000,
        )
        for goal, path, size, latency, loss in [
            ("rank 4", f"{EVIL}.tflite", 1000, 1e-5, 0.2),
            ("rank 8", "b.tflite", 2000, None, 0.01),
            ("rank 9", "c.tflite", 2500, 3e-5, 0.3),
            (UNCOMPRESSED, None, 9000, 9e-5, -0.001),
        ]
    ]
    chosen = choose(points)
    rejected, failures = {"rank 3": ["tflite int4"]}, {"rank 2": f"reason {EVIL}"}
    return Sweep(
        *(tuple(points), tuple(pareto_front(points)), chosen, "exporter run --recipe r.json"),
        *(rejected, failures, 1, tmp_path),
    )


def test_the_page_has_every_point_and_names_are_text(found):
    write_page(found)
    page = (found.output / "sweep.html").read_text()
    assert EVIL not in page
    (text,) = re.findall(r'id="points">(.*)</script>', page)
    points = json.loads(text)
    assert [point["size"] for point in points] == [1000, 2000, 2500, 9000]
    assert [point["front"] for point in points] == [True, True, False, True]
    assert [point["chosen"] for point in points] == [False, True, False, False]
    assert [point["uncompressed"] for point in points] == [False, False, False, True]
    assert page.count('<th scope="row">') == 4
    write_page(replace(found, chosen=None, command=None))
    assert "No artifact is within the limits" in (found.output / "sweep.html").read_text()


def test_the_tables_have_every_point(found):
    write_tables(found)
    rows = list(csv.DictReader((found.output / "sweep.csv").read_text().splitlines()))
    assert [(row["goal"], row["on_front"], row["chosen"]) for row in rows] == [
        *(("rank 4", "1", "0"), ("rank 8", "1", "1"), ("rank 9", "0", "0")),
        (UNCOMPRESSED, "1", "0"),
    ]
    assert [row["latency_us"] for row in rows] == ["10.0", "", "30.0", "90.0"]
    console = Console(file=io.StringIO(), width=80)
    print_sweep(found, console)
    text = console.file.getvalue()
    assert "rank 9" not in text
    for line in ("rank 8", "FAILED       rank 2", "Rejected     rank 3", "Next: exporter run"):
        assert line in text


def test_parquet_has_what_csv_has_with_types(found):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_tables(replace(found, parquet=True))
    table = parquet.read_table(found.output / "sweep.parquet")
    rows = list(csv.DictReader((found.output / "sweep.csv").read_text().splitlines()))
    kinds = [str(table.schema.field(name).type) for name in ("bytes", "latency_us", "path")]
    assert kinds == ["int64", "double", "string"]
    assert table["latency_us"].to_pylist() == [10.0, None, 30.0, 90.0]
    assert table["on_front"].to_pylist() == [True, True, False, True]
    for name in ("goal", "bytes", "loss", "path"):
        cells = ["" if cell is None else str(cell) for cell in table[name].to_pylist()]
        assert cells == [row[name] for row in rows]
    write_tables(replace(found, points=(), parquet=True))
    assert parquet.read_table(found.output / "sweep.parquet").schema == table.schema


@pytest.mark.slow
def test_in_a_browser(found, browse):
    write_page(found)
    browse(found.output / "sweep.html")
