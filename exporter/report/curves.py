"""The curves of fine-tuning, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.training.loop import Epoch, History


def draw_curves(phases: Sequence[History], file: Path) -> None:
    """Draws loss and accuracy over the epochs, one phase after the other.

    Args:
        phases: What was trained.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    classifies = any(epoch.accuracy is not None for phase in phases for epoch in phase.epochs)
    figure = Figure(figsize=(5 * (1 + classifies), 3.6), layout="constrained")
    panels = figure.subplots(1, 1 + classifies, squeeze=False)[0]
    start = 0
    for number, phase in enumerate(phases):
        colours = f"C{2 * number}", f"C{2 * number + 1}"
        named = {"label": f"{phase.phase}, training", "color": colours[0]}
        _draw(panels[0], phase, start, "loss", **named)
        named = {"label": f"{phase.phase}, validation", "color": colours[1]}
        _draw(panels[0], phase, start, "validation_loss", **named)
        if classifies:
            _draw(panels[1], phase, start, "accuracy", **named)
        for panel in panels:
            panel.axvline(start + phase.best, color="gray", linestyle=":", linewidth=1)
        start += len(phase.epochs) - 1
    panels[0].set(title="loss", xlabel="epoch; dotted: weights that were kept")
    if classifies:
        panels[1].set(title="accuracy, %", xlabel="epoch")
    for panel in panels:
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend()
    figure.savefig(file, dpi=120)


def _draw(panel: Any, phase: History, start: int, name: str, **style: str) -> None:
    points: list[tuple[Epoch, float]] = [
        (epoch, getattr(epoch, name)) for epoch in phase.epochs if getattr(epoch, name) is not None
    ]
    if points:
        scale = 100 if name == "accuracy" else 1
        panel.plot(
            [start + epoch.number for epoch, _ in points],
            [scale * value for _, value in points],
            marker=".",
            **style,
        )
