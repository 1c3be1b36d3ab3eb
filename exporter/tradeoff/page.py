"""Draws a sweep as a page, on which artifacts can be looked at and filtered."""

import json
from typing import Any

from exporter.disk import replace_text
from exporter.report.page import summary
from exporter.report.page.drawing import environment
from exporter.tradeoff.front import UNCOMPRESSED, Point, Sweep

PAGE_FILE = "sweep.html"


def write_page(sweep: Sweep) -> None:
    """Writes ``sweep.html`` into the folder of a sweep; it loads nothing from elsewhere."""
    points = sorted(sweep.points, key=lambda point: (point.size, point.loss))
    rows = {point: _row(point, sweep) for point in points}
    marks = [
        {
            "kind": f"{point.format} {point.variant}",
            "size": point.size,
            "latency": point.latency,
            "loss": point.loss,
            "front": point in sweep.front,
            "chosen": point == sweep.chosen,
            "uncompressed": point.goal == UNCOMPRESSED,
            "told": f"{point.goal}, {point.format} {point.variant}: {row['bytes']}, {row['told']}",
        }
        for point, row in rows.items()
    ]
    # A name of a file could end the element that the text stands in.
    text = json.dumps(marks).replace("<", "\\u003c")
    page = environment().get_template("sweep.html.j2")
    content = page.render(
        name=sweep.output.name,
        rows=rows.values(),
        points=text,
        chosen=rows[sweep.chosen] if sweep.chosen else None,
        command=sweep.command,
        failures=sweep.failures,
        rejected=sweep.rejected,
    )
    replace_text(sweep.output / PAGE_FILE, content)


def _row(point: Point, sweep: Sweep) -> dict[str, Any]:
    """Returns a point in words."""
    time = "" if point.latency is None else summary.time(point.latency)
    result = "" if point.metric is None else summary.metric(vars(point.metric))
    facts = [f"loss {point.loss:.2%}", *([time] if time else [])]
    if point.metric is not None:
        facts.insert(0, f"{point.metric.name} {result}")
    return {
        **vars(point),
        "bytes": f"{point.size:,} bytes",
        "time": time,
        "result": result,
        "lost": f"{point.loss:+.2%}",
        "told": ", ".join(facts),
        "mark": "chosen" if point == sweep.chosen else "" if point in sweep.front else "beaten",
    }
