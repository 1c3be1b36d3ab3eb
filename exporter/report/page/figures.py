"""Draws the figures of a report, as SVG that takes its ink from the page around it."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.data import Array
from exporter.report.curves import curves
from exporter.training.loop import Epoch, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#3b82c4", "#d9772b", "#858c96"
"""Colours with a contrast of 3 to 1 on white and on the dark page."""

_INK = "#123456"
"""Stands for the colour of text, which is the page's."""

_WIDTH = 4.6
_BAR = 0.21
"""Inches."""

_LINE, _CLASS_LINE = 28, 10
"""Characters in a line of names beside bars, and of classes; more would leave no room to draw."""


@contextmanager
def style() -> Iterator[None]:
    """Has Matplotlib draw on nothing, in ink, with text as text, and the same bytes each time."""
    import matplotlib as mpl

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    options: Any = {
        **dict.fromkeys(inked, _INK),
        "axes.prop_cycle": f"cycler('color', {[BLUE, ORANGE, '#3a9d5d', '#a06cd5']})",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "font.size": 9,
        "legend.frameon": False,
        "savefig.transparent": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "exporter",
        "text.parse_math": False,  # Names of layers may have dollars.
    }
    with mpl.rc_context(options):
        yield


def svg(figure: "Figure", key: str) -> str:
    """Writes a figure as an SVG element, whose identifiers begin with a key of its own."""
    stream = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=empty)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r" (width|height)=\"[\d.]+pt\"", "", text, count=2)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: sans-serif", text)
    # Groups have names that nothing refers to, the same in every figure.
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    return re.sub(r"(id=\"|href=\"#|url\(#)", rf"\g<1>{key}-", text)


def _axes(height: float, width: float = _WIDTH, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, sharey=True)[0])


def bars(
    names: Sequence[str], groups: Mapping[str, Sequence[float | None]], label: str, *, log: bool
) -> "Figure":
    """Draws horizontal bars, those of each name beside one another, and their values."""
    from matplotlib.ticker import LogFormatter

    height = 0.8 + _BAR * len(names) * (len(groups) + 0.6)
    figure, [panel] = _axes(height)
    thick = 1 / (len(groups) + 0.6)
    colours = [GRAY, ORANGE, BLUE][-len(groups) :]
    for position, (group, values) in enumerate(groups.items()):
        places = [i + (position - (len(groups) - 1) / 2) * thick for i in range(len(names))]
        shown = [0.0 if value is None else value for value in values]
        drawn = panel.barh(places, shown, thick * 0.9, label=group, color=colours[position])
        texts = ["" if value is None else f" {number(value)}" for value in values]
        panel.bar_label(drawn, texts, fontsize=8)
    panel.set_yticks(range(len(names)), [_in_two_lines(name, _LINE) for name in names])
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_xlabel(label)
    if log:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(_plain)
        # By default, it writes formulas.
        panel.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    if len(groups) > 1:
        figure.legend(loc="outside upper left", ncols=len(groups), fontsize=8, columnspacing=1)
    return figure


def _in_two_lines(name: str, longest: int) -> str:
    """Breaks a name that is longer than a line, and cuts what two lines have no room for."""
    if len(name) <= longest:
        return name
    if len(name) <= 2 * longest:
        return f"{name[:longest]}\n{name[longest:]}"
    return f"{name[: longest - 1]}…\n{name[-longest:]}"


def number(value: float) -> str:
    """Writes three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: float, position: float) -> str:
    """Writes a tick of a logarithmic axis, for formulas are not parsed."""
    del position
    return f"{value:,.0f}" if value >= 1 else f"{value:.0e}".replace("e-0", "e-")


def spectrum(values: Array, rank: int, full: int) -> "Figure":
    """Draws singular values on a logarithmic scale, with the cut; ``values`` is 2 x k."""
    figure, [panel] = _axes(2.1, 3.4)
    figure.set_layout_engine(None)  # To find a layout takes as long as to draw.
    figure.subplots_adjust(left=0.16, right=0.97, bottom=0.22, top=0.97)
    numbers, sizes = values
    positive = sizes > 0
    panel.semilogy(numbers[positive], sizes[positive], color=BLUE)
    panel.axvline(rank + 0.5, color=ORANGE, linestyle="--")
    panel.axvspan(rank + 0.5, full + 0.5, color=GRAY, alpha=0.15, linewidth=0)
    panel.annotate(
        f"cut at {rank}", (rank + 0.5, 0.96), (4, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top",
    )  # fmt: skip
    panel.yaxis.set_major_formatter(_plain)
    panel.set(xlabel="number", ylim=(max(1e-7, float(sizes[positive].min()) * 0.5), 1.6))
    panel.set_xlim(1, full + 0.5)
    return figure


def training_curves(phases: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws the phases of fine-tuning, as the manifest has them."""
    histories = [
        History(**{**phase, "epochs": tuple(Epoch(**each) for each in phase["epochs"])})
        for phase in phases
    ]
    return curves(histories, upright=True)


def confusion(counts: Array, names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix, label by prediction; confusions have a scale of their own."""
    size = len(counts)
    figure, [panel] = _axes(min(4.4, 1.2 + 0.3 * size), min(4.6, 1.4 + 0.3 * size))
    wrong = np.where(np.eye(size, dtype=bool), 0, counts)
    shares = wrong / max(1, wrong.max())
    panel.imshow(shares, cmap="Oranges", vmin=0, vmax=1.6, alpha=np.where(wrong, 0.9, 0))
    right = np.ma.masked_array(np.ones_like(shares), mask=~np.eye(size, dtype=bool))
    panel.imshow(right, cmap="Blues", vmin=0, vmax=2, alpha=0.35)
    if size <= 16:
        for row, column in np.argwhere(counts):
            # Cells are light in both themes where something was confused.
            ink = _INK if row == column else "#111111"
            place: Any = {"ha": "center", "va": "center", "fontsize": 7, "color": ink}
            panel.text(column, row, f"{counts[row, column]}", **place)
        names = [_in_two_lines(name, _CLASS_LINE) for name in names]
        panel.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 2 else 0)
        panel.set_yticks(range(size), names)
    panel.set(xlabel="predicted", ylabel="label")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    return figure


def picture(array: Array, low: float, high: float, cmap: str = "viridis") -> str:
    """Draws an array, h x w of values between two limits or h x w x 3 of bytes, as a PNG URI."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, array, vmin=low, vmax=high, cmap=cmap, format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
