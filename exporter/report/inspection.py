"""An inspection on a terminal."""

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report.console import open_table
from exporter.report.results import ENERGIES, SPECTRUM_POINTS, Inspection, KernelInspection

_BARS = " ▁▂▃▄▅▆▇█"


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints what an inspection found."""
    console.print(_kernel_table(inspection))
    console.print(
        Text(
            f"Model {inspection.model_name}: {inspection.params:,} parameters, "
            f"{inspection.macs:,} MACs"
        )
    )
    table = open_table(
        "What each way of choosing ranks would do", ["option"], ["params"], ["ranks"]
    )
    for preview in inspection.policies:
        if preview.params is None:
            table.add_row(preview.option, "", Text(preview.error or "", "red"))
            continue
        ratio = inspection.params / max(1, preview.params)
        ranks = ", ".join(f"{name} {rank}" for name, rank in preview.ranks.items())
        table.add_row(
            preview.option,
            f"{preview.params:,} ({ratio:.1f}×)",
            Text(ranks or "every layer stays as it is"),
        )
    console.print(table)


def _kernel_table(inspection: Inspection) -> Table:
    source = "of the outputs, on calibration data" if inspection.data_aware else "of the weights"
    table = open_table(
        f"Layers, and the ranks that keep a part of the energy {source} (spectrum: 1 to 1e-4)",
        ["layer", "kind"],
        ["m × n", "params", "MACs", "break-even", *(f"{part:.1%}" for part in ENERGIES)],
        [],
    )
    table.add_column("spectrum", min_width=SPECTRUM_POINTS, overflow="fold")
    for kernel in inspection.kernels:
        table.add_row(Text(kernel.name), kernel.kind, *_kernel_cells(kernel))
    return table


def _kernel_cells(kernel: KernelInspection) -> list[str]:
    if kernel.shape is None or kernel.effective_ranks is None or kernel.spectrum is None:
        return ["", f"{kernel.params:,}", "", "", *("" for _ in ENERGIES), kernel.reason]
    return [
        f"{kernel.shape[0]} × {kernel.shape[1]}",
        f"{kernel.params:,}",
        f"{kernel.macs:,}",
        f"{kernel.break_even_rank:.1f}",
        *map(str, kernel.effective_ranks),
        _sparkline(kernel.spectrum),
    ]


def _sparkline(values: Iterable[float]) -> str:
    """Draws values from 1e-4 to 1 on a logarithmic scale; a blank is less."""
    levels = (1 + math.log10(max(value, 1e-9)) / 4 for value in values)
    return "".join(_BARS[max(0, min(len(_BARS) - 1, round(v * (len(_BARS) - 1))))] for v in levels)
