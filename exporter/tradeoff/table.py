"""Shows a sweep: on the terminal, as CSV and as Parquet."""

import csv
import io
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from exporter.disk import replace_text, scratch_folder
from exporter.formats.extras import Extra
from exporter.report.tables import open_table
from exporter.tradeoff.front import UNCOMPRESSED, Point, Sweep
from exporter.tradeoff.page import PAGE_FILE

CSV_FILE = "sweep.csv"
PARQUET_FILE = "sweep.parquet"

PARQUET = Extra("parquet", ("pyarrow",))

_COLUMNS = {
    **dict.fromkeys(("goal", "format", "variant"), "string"),
    "bytes": "int64",
    **dict.fromkeys(("latency_us", "loss", "test_loss"), "double"),
    "metric": "string",
    "value": "double",
    **dict.fromkeys(("on_front", "chosen"), "bool"),
    "path": "string",
}
"""What a table tells of each point, with its type in Arrow."""


def write_tables(sweep: Sweep) -> None:
    """Writes all points of a sweep to ``sweep.csv`` in its folder, and as Parquet if asked to."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    rows = list(_rows(sweep))
    for row in rows:
        writer.writerow(int(cell) if isinstance(cell, bool) else cell for cell in row)
    replace_text(sweep.output / CSV_FILE, text.getvalue())
    if sweep.parquet:
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
        named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        with scratch_folder(sweep.output) as folder:
            written = folder / PARQUET_FILE
            parquet.write_table(pa.Table.from_pylist(named, schema), written)
            written.replace(sweep.output / PARQUET_FILE)


def _rows(sweep: Sweep) -> Iterator[tuple[str | float | None, ...]]:
    """Yields the cells of each point, from the smallest to the largest."""
    for point in sorted(sweep.points, key=lambda point: point.size):
        latency = None if point.latency is None else round(point.latency * 1e6, 3)
        metric = (None, None) if point.metric is None else (point.metric.name, point.metric.value)
        facts = (point.goal, point.format, point.variant, point.size, latency)
        losses = (point.loss, point.test_loss)
        yield (*facts, *losses, *metric, point in sweep.front, point == sweep.chosen, point.path)


def print_sweep(sweep: Sweep, console: Console) -> None:
    """Prints the front of a sweep, the choice, and the command that exports it."""
    title = (
        f"Artifacts that no other beats; {UNCOMPRESSED} is the uncompressed network.\n"
        "They are compared by the loss on validation data; the result is on test data"
    )
    table = open_table(title, ["ranks by", "artifact"], ["bytes", "latency", "result", "loss", ""])
    for point in sweep.front:
        style = "bold green" if point == sweep.chosen else ""
        latency = "" if point.latency is None else f"{point.latency * 1e6:,.1f} µs"
        facts = [f"{point.size:,}", latency, _result(point), f"{point.loss:+.2%}"]
        mark = "chosen" if point == sweep.chosen else ""
        table.add_row(Text(point.goal, style), f"{point.format} {point.variant}", *facts, mark)
    console.print(table)
    lines = []
    for goal, names in sweep.rejected.items():
        lines.append(f"Rejected     {goal}: {', '.join(names)}")
    for goal, reason in sweep.failures.items():
        # A search for the best tries budgets that ranks and channels cannot keep.
        lines.append(f"{'No artifact' if sweep.best else 'FAILED':13}{goal}: {reason}")
    if sweep.kept:
        lines.append(f"Trials       {sweep.kept} had been finished before")
    beaten = len(sweep.points) - len(sweep.front)
    lines.append(f"Artifacts    {len(sweep.points)}, {beaten} of them beaten by others")
    if sweep.chosen is None:
        added = "" if sweep.best else ", or add ranks (--ranks)"
        lines.append(f"Nothing is within the limits: raise one{added}")
    else:
        lines.append(f"Chosen       {_told(sweep.chosen)}")
        lines += [f"{told:13}{_offer(point)}" for told, point in sweep.neighbours.items()]
        lines.append(f"Next: {sweep.command}")
    files = (CSV_FILE, *([PARQUET_FILE] if sweep.parquet else []), PAGE_FILE)
    lines.append(f"Wrote        {', '.join(str(sweep.output / name) for name in files)}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _result(point: Point) -> str:
    if point.metric is None:
        return ""
    value = point.metric.value
    return f"{value:.2%}" if point.metric.name == "accuracy" else f"{point.metric.name} {value:.4g}"


def _offer(point: Point) -> str:
    return f"{point.goal}, {point.format} {point.variant}: {point.size:,} bytes, {point.loss:+.2%}"


def _told(point: Point) -> str:
    where = point.path or "the uncompressed network, which no trial keeps"
    return f"{point.goal}, {point.format} {point.variant}: {where}"
