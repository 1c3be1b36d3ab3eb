"""Draws the report of a run: the page, the Markdown, and the figures as files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.output import FIGURES, PAGE_FILE, REPORT_FILES, TEXT_FILE
from exporter.report.page import figures, summary
from exporter.report.page.pictures import Pictures
from exporter.report.page.snippets import quoted, snippets

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

_PARTS = {
    "W": "baseline W",
    "U": "U",
    "S": "S",
    "V": "V",
    "product": "product U S V",
    "difference": "difference, W less the product",
}


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        key: Its name as a file.
        svg: An SVG element.
        told: What it shows, for those who do not see it.
    """

    key: str
    svg: str
    told: str


@dataclass(frozen=True)
class Matrix:
    """A picture of a matrix, with its size and the limits of its colours."""

    name: str
    uri: str
    rows: int
    columns: int
    low: float
    high: float


def draw_report(manifest: Mapping[str, Any], pictures: Pictures, folder: Path) -> None:
    """Writes the page, the Markdown and the figures into a folder; the same bytes for the same run.

    Raises:
        Exception: Of any kind, if the manifest does not follow its schema, or the pictures are none
            of its run.
    """
    templates = environment()
    with figures.style():
        known = _known(manifest, pictures, templates)
    texts = {
        PAGE_FILE: templates.get_template("report.html.j2").render(known),
        TEXT_FILE: templates.get_template("report.md.j2").render(known),
    }
    drawn: list[Figure] = [*known["charts"].values(), *known["spectra"].values()]
    drawn += [figure for each in known["confusion"].values() for figure in each.values()]
    (folder / FIGURES).mkdir()
    for figure in drawn:
        # On its own, a figure has no page around it: its ink is gray on any ground.
        text = figure.svg.replace("<svg ", '<svg color="#7d848e" ', 1)
        (folder / FIGURES / f"{figure.key}.svg").write_text(text, encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@cache
def environment() -> "Environment":
    """Returns what renders the templates of pages."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # Names of layers and files are anyone's; code is escaped where the page shows it.
        autoescape=lambda name: not (name or "").startswith("snippets/"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tools = (summary.metric, summary.size, summary.time, _span, quoted)
    made.filters |= {tool.__name__.strip("_"): tool for tool in tools}
    return made


def _known(
    manifest: Mapping[str, Any], pictures: Pictures, environment: "Environment"
) -> dict[str, Any]:
    """Returns what the templates know."""
    files = [f for f in manifest["files"] if not f["path"].startswith(REPORT_FILES)]
    return {
        "manifest": manifest,
        "figures_folder": FIGURES,
        "files": files,
        "badge": summary.badge(manifest),
        "verdict": summary.verdict(manifest),
        "steps": summary.next_steps(manifest),
        "cards": summary.cards(manifest),
        "lead": summary.lead_of(manifest),
        "charts": {figure.key: figure for figure in _charts(manifest)},
        "spectra": dict(_spectra(manifest, pictures)),
        "matrices": dict(_matrices(manifest, pictures)),
        "confusion": {
            name: dict(_confusion(manifest, pictures, name)) for name in pictures.confusion
        },
        "changes": {
            output: list(_changes(manifest, pictures, output)) for output in pictures.changes
        },
        "snippets": {
            artifact["file"]["path"]: snippets(artifact, manifest, environment)
            for artifact in manifest["artifacts"]
            if artifact["accepted"] and artifact["file"]
        },
        "options": dict(_given(manifest["recipe"])),
        "parity": _parity(manifest),
        "integers": list(_losses(manifest)),
    }


def _figure(key: str, drawn: Any, told: str) -> Figure:
    return Figure(key, figures.svg(drawn, key), told)


def _charts(manifest: Mapping[str, Any]) -> Iterator[Figure]:
    """Draws what is one figure for the whole run."""
    measured = [a for a in manifest["artifacts"] if a["file"] and a["baseline_size"]]
    names = [artifact["file"]["path"] for artifact in measured]
    if measured:
        sizes = {
            "baseline, float32": [a["baseline_size"] / 1e3 for a in measured],
            "uncompressed, same variant": [_at(a, "alternative", "size", 1e-3) for a in measured],
            "artifact": [a["file"]["size"] / 1e3 for a in measured],
        }
        drawn = figures.bars(names, sizes, "KB", log=True)
        yield _figure("sizes", drawn, f"Sizes in kilobytes: {_listed(names, sizes)}.")
    timed = [artifact for artifact in measured if artifact["latency"]]
    if timed:
        names = [artifact["file"]["path"] for artifact in timed]
        times = {
            "baseline, float32": [a["latency"]["baseline"]["p50"] * 1e6 for a in timed],
            "uncompressed, same variant": [
                _at(a["alternative"] or {}, "latency", "p50", 1e6) for a in timed
            ],
            "artifact": [a["latency"]["compressed"]["p50"] * 1e6 for a in timed],
        }
        drawn = figures.bars(names, times, "median of a call, µs", log=True)
        yield _figure("latency", drawn, f"Median latency in microseconds: {_listed(names, times)}.")
    cut = [layer for layer in manifest["layers"] if layer["predicted_error"] is not None]
    if cut:
        names = [layer["name"] for layer in cut]
        errors = {
            "predicted": [100 * layer["predicted_error"] for layer in cut],
            "measured": [_at({"": layer}, "", "measured_error", 100) for layer in cut],
        }
        drawn = figures.bars(names, errors, "relative error, %", log=False)
        yield _figure("errors", drawn, f"Relative error in percent: {_listed(names, errors)}.")
    for number, (path, losses) in enumerate(_losses(manifest).items()):
        shown = {name: part for name, part in list(losses.items())[:12] if part >= 0.0005}
        shares: dict[str, list[float | None]] = {path: [100 * part for part in shown.values()]}
        drawn = figures.bars(list(shown), shares, "share of the noise, %", log=False)
        told = f"Share of the noise in integers, in percent: {_listed(list(shown), shares)}."
        yield _figure(f"integers-{number}", drawn, told)
    if manifest["finetuning"]:
        phases = manifest["finetuning"]["phases"]
        kept = ", ".join(
            f"{phase['phase']}: {len(phase['epochs']) - 1} epochs, weights of epoch {phase['best']}"
            for phase in phases
        )
        told = f"Loss and accuracy by epoch; {kept}."
        yield _figure("training", figures.training_curves(phases), told)


def _losses(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Returns the parts of the noise by layer, by the path of each artifact that has them."""
    return {
        artifact["file"]["path"]: artifact["conversion"]["losses"]
        for artifact in manifest["artifacts"]
        if artifact["file"] and artifact["conversion"] and artifact["conversion"]["losses"]
    }


def _at(values: Mapping[str, Any], key: str, inner: str, scale: float) -> float | None:
    found = values.get(key)
    return None if not found or found[inner] is None else found[inner] * scale


def _listed(names: list[str], groups: Mapping[str, list[float | None]]) -> str:
    """Tells the values of bars in words."""
    return "; ".join(
        f"{name}: "
        + ", ".join(
            f"{group} {figures.number(value)}"
            for group, values in groups.items()
            if (value := values[i]) is not None
        )
        for i, name in enumerate(names)
    )


def _spectra(manifest: Mapping[str, Any], pictures: Pictures) -> Iterator[tuple[str, Figure]]:
    for number, layer in enumerate(manifest["layers"]):
        values = pictures.spectra.get(layer["name"])
        if values is None or layer["rank"] is None or not np.any(values[1] > 0):
            continue
        full = min(layer["shape"])
        kept = values[1][values[0] <= layer["rank"]]
        told = (
            f"Singular values of {layer['name']} on a logarithmic scale: {full} of them, cut at "
            f"{layer['rank']}, where they have fallen to {kept[-1]:.2g} of the largest."
        )
        drawn = figures.spectrum(values, layer["rank"], full)
        yield layer["name"], _figure(f"spectrum-{number}", drawn, told)


def _matrices(
    manifest: Mapping[str, Any], pictures: Pictures
) -> Iterator[tuple[str, list[Matrix]]]:
    for layer in manifest["layers"]:
        parts = pictures.weights.get(layer["name"])
        if not parts:
            continue
        (m, n), rank = layer["shape"], layer["rank"]
        shapes = {"U": (m, rank), "S": (rank, rank), "V": (rank, n)}
        yield (
            layer["name"],
            [
                Matrix(
                    told,
                    figures.picture(parts[name], *_limits(parts, name)),
                    *shapes.get(name, (m, n)),
                    *_limits(parts, name),
                )
                for name, told in _PARTS.items()
            ],
        )


def _limits(parts: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Returns limits of colours: the same for all that is as large as W."""
    if name == "S":
        return 0.0, float(parts[name].max())
    alike = parts["W"] if name in {"product", "difference"} else parts[name]
    largest = float(np.abs(alike).max())
    return -largest, largest


def _labels(manifest: Mapping[str, Any], output: str, count: int) -> list[str]:
    names: list[str] = manifest["card"]["labels"].get(output, [])
    return names if len(names) == count else [str(number) for number in range(count)]


def _confusion(
    manifest: Mapping[str, Any], pictures: Pictures, output: str
) -> Iterator[tuple[str, Figure]]:
    position = list(pictures.confusion).index(output)
    for number, (model, counts) in enumerate(pictures.confusion[output].items()):
        names = _labels(manifest, output, len(counts))
        wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
        most = np.argsort(wrong, axis=None, kind="stable")[::-1][:3]
        worst = [np.unravel_index(index, wrong.shape) for index in most if wrong.flat[index]]
        confused = ", ".join(f"{names[a]} for {names[b]} {wrong[a, b]} times" for a, b in worst)
        told = (
            f"Confusion matrix of the {model} model: {np.trace(counts)} of {counts.sum()} samples "
            f"are right; taken most often: {confused or 'none'}."
        )
        drawn = figures.confusion(counts, names)
        yield model, _figure(f"confusion-{position}-{number}", drawn, told)


def _changes(
    manifest: Mapping[str, Any], pictures: Pictures, output: str
) -> Iterator[dict[str, Any]]:
    """Returns the samples whose class changed, with their classes by name."""
    found = dict(pictures.changes[output])
    samples, images = found.pop("sample"), pictures.images.get(output)
    for position, sample in enumerate(samples):
        classes = {model: int(values[position]) for model, values in found.items()}
        uri = None if images is None else figures.picture(images[position], 0, 255, "gray")
        known = manifest["card"]["labels"].get(output, [])
        named = {
            model: known[number] if number < len(known) else str(number)
            for model, number in classes.items()
        }
        yield {"sample": int(sample), "classes": named, "uri": uri}


def _parity(manifest: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the parity of each artifact, one row for each backend, probe and output."""
    found = {}
    for artifact in manifest["artifacts"]:
        parity = (artifact["conversion"] or {}).get("parity")
        if parity:
            found[artifact["file"]["path"]] = parity["comparisons"]
    return found


def _given(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the options that are not as they are by default, by flag."""
    from exporter.recipe import GROUPS

    for group, values in recipe.items():
        for option in GROUPS[group].options():
            value = values.get(option.name, option.default)
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            if value != default:
                yield option.flag, value


def _span(text: str) -> str:
    """Keeps a text within a cell of a Markdown table, or the text of an image."""
    return re.sub(r"([\[\]])", r"\\\1", re.sub(r"[\s|`]+", " ", str(text)))
