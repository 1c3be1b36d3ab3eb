"""Prints an inspection on a terminal."""

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report.results import ENERGIES, SPECTRUM_POINTS, Inspection
from exporter.report.tables import open_table

_BARS = " ▁▂▃▄▅▆▇█"


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints the findings of an inspection."""
    params, macs = f"{inspection.params:,} parameters", f"{inspection.macs:,} MACs"
    console.print(_kernel_table(inspection))
    console.print(Text(f"Model {inspection.model_name}: {params}, {macs}"))
    title = "What each way of choosing ranks would do"
    table = open_table(title, ["option"], ["params"], ["ranks"])
    for preview in inspection.policies:
        if preview.params is None:
            table.add_row(preview.option, "", Text(preview.error or "", "red"))
            continue
        size = f"{preview.params:,} ({inspection.params / max(1, preview.params):.1f}×)"
        ranks = ", ".join(f"{name} {rank}" for name, rank in preview.ranks.items())
        table.add_row(preview.option, size, Text(ranks or "every layer stays as it is"))
    console.print(table)


def _kernel_table(inspection: Inspection) -> Table:
    source = "of the outputs, on calibration data" if inspection.data_aware else "of the weights"
    table = open_table(
        f"Layers, and the ranks that keep a part of the energy {source} (spectrum: 1 to 1e-4)",
        ["layer", "kind"],
        ["m × n", "params", "MACs", "break-even", *(f"{part:.1%}" for part in ENERGIES)],
        lesser=["MACs", "kind", f"{ENERGIES[1]:.1%}", "params", f"{ENERGIES[-1]:.1%}"],
    )
    table.add_column("spectrum", min_width=SPECTRUM_POINTS, overflow="fold")
    for kernel in inspection.kernels:
        params = f"{kernel.params:,}"
        cells = ["", params, "", "", *("" for _ in ENERGIES), kernel.reason]
        if kernel.shape and kernel.effective_ranks and kernel.spectrum:
            shape, break_even = " × ".join(map(str, kernel.shape)), f"{kernel.break_even_rank:.1f}"
            macs, ranks = f"{kernel.macs:,}", map(str, kernel.effective_ranks)
            cells = [shape, params, macs, break_even, *ranks, _sparkline(kernel.spectrum)]
        table.add_row(Text(kernel.name), kernel.kind, *cells)
    return table


def _sparkline(values: Iterable[float]) -> str:
    """Draws values from 1e-4 to 1 on a logarithmic scale; a blank is less."""
    levels = (round(8 + 2 * math.log10(max(value, 1e-4))) for value in values)
    return "".join(_BARS[level] for level in levels)
