"""Shows a sweep: on the terminal, and as CSV."""

import csv
import io

from rich.console import Console
from rich.text import Text

from exporter.disk import replace_text
from exporter.report.tables import open_table
from exporter.tradeoff.front import UNCOMPRESSED, Point, Sweep
from exporter.tradeoff.page import PAGE_FILE

CSV_FILE = "sweep.csv"

_COLUMNS = (
    *("goal", "format", "variant", "bytes", "latency_us", "loss", "metric", "value"),
    *("on_front", "chosen", "path"),
)


def write_tables(sweep: Sweep) -> None:
    """Writes all points of a sweep to ``sweep.csv`` in its folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in sorted(sweep.points, key=lambda point: point.size):
        latency = "" if point.latency is None else f"{point.latency * 1e6:.3f}"
        metric = ("", "") if point.metric is None else (point.metric.name, point.metric.value)
        marks = (int(point in sweep.front), int(point == sweep.chosen))
        facts = (point.goal, point.format, point.variant, point.size, latency, point.loss)
        writer.writerow([*facts, *metric, *marks, point.path or ""])
    replace_text(sweep.output / CSV_FILE, text.getvalue())


def print_sweep(sweep: Sweep, console: Console) -> None:
    """Prints the front of a sweep, the choice, and the command that exports it."""
    title = f"Artifacts that no other beats; {UNCOMPRESSED} is the uncompressed network"
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
    lines.append(f"Wrote        {sweep.output / CSV_FILE}, {sweep.output / PAGE_FILE}")
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
