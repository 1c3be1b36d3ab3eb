"""Draws the curves of fine-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.training.loop import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(phases: Sequence[History], file: Path) -> None:
    """Draws loss and accuracy over the epochs to a PNG file, one phase after the other."""
    curves(phases).savefig(file, dpi=120)


def curves(phases: Sequence[History], *, upright: bool = False) -> "Figure":
    """Draws loss beside accuracy over the epochs, or above it, one phase after the other."""
    from matplotlib.figure import Figure

    classifies = any(epoch.accuracy is not None for phase in phases for epoch in phase.epochs)
    count = 1 + classifies
    size, grid = ((4.6, 2.6 * count), (count, 1)) if upright else ((5 * count, 3.6), (1, count))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(*grid, squeeze=False).flat
    start = 0
    for number, phase in enumerate(phases):
        training, validation = (
            {"label": f"{phase.phase}, {part}", "color": f"C{2 * number + index}"}
            for index, part in enumerate(("training", "validation"))
        )
        _draw(panels[0], phase, start, "loss", **training)
        _draw(panels[0], phase, start, "validation_loss", **validation)
        if classifies:
            _draw(panels[1], phase, start, "accuracy", **validation)
        for panel in panels:
            panel.axvline(start + phase.best, color="gray", linestyle=":", linewidth=1)
        start += len(phase.epochs) - 1
    panels[0].set(title="loss", xlabel="epoch; dotted: weights that were kept")
    if classifies:
        panels[1].set(title="accuracy, %", xlabel="epoch")
    for panel in panels:
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend()
    return figure


def _draw(panel: Any, phase: History, start: int, name: str, **style: str) -> None:
    scale = 100 if name == "accuracy" else 1
    values = [(epoch.number, getattr(epoch, name)) for epoch in phase.epochs]
    points = [(start + number, scale * value) for number, value in values if value is not None]
    if points:
        panel.plot(*zip(*points, strict=True), marker=".", **style)
