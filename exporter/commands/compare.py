"""``compare``: tells whether a new run falls behind an old one, by their manifests."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.data.metrics import Metric, loss_of
from exporter.errors import InputError
from exporter.inputs import made_of
from exporter.options import checks
from exporter.output import MANIFEST
from exporter.report.comparison import Comparison, Figure, Pair
from exporter.report.manifest import read_manifest

LEAST_LOSS, STANDARD_ERRORS = 0.005, 2.0
"""Accuracy that may be lost by default: so much, or so many standard errors of the old one."""

ERROR_GROWTH = 0.05
"""Part by which an error, such as that of a regression, may grow by default."""


@dataclass(frozen=True)
class _Entry:
    """What a manifest tells of one artifact.

    Attributes:
        size: Bytes; None if the converter failed.
        latency: Seconds; None if it was not timed.
        metrics: What it is judged by, by a name that tells the metric and the output.
    """

    file: str
    accepted: bool
    error: str | None
    size: float | None
    latency: float | None
    metrics: Mapping[str, Metric]


def compare(
    old: str | Path,
    new: str | Path,
    *,
    max_loss: float | None = None,
    max_growth: float = 0.02,
    max_slowdown: float | None = None,
) -> Comparison:
    """Tells whether a new run falls behind an old one, artifact by artifact.

    An artifact falls behind if it is missing, was accepted in the old run alone, or has lost more
    than a limit. Outputs without labels are judged by their agreement with the baseline.

    Args:
        old: The folder of a run, or its manifest.
        new: That of the run that is held against it.
        max_loss: Accuracy that an output may lose, 0 to 1, or part by which its error may grow. By
            default 0.005, or two standard errors of the old accuracy if that is more, and 0.05 of
            an error.
        max_growth: Part by which a file may grow.
        max_slowdown: Part by which the latency may grow, which each run measured on its machine;
            None does not judge it.

    Raises:
        InputError: If one of them is not the manifest of a run.
        RecipeError: If a limit is out of its range.
    """
    limits = checks.Comparison(max_loss=max_loss, max_growth=max_growth, max_slowdown=max_slowdown)
    before, after = (_entries(Path(path)) for path in (old, new))
    pairs = tuple(_pair(*key, entry, after.get(key), limits) for key, entry in before.items())
    added = tuple(entry.file for key, entry in after.items() if key not in before)
    note = "Latency is not judged, for machines differ; --max-slowdown 10% judges it."
    return Comparison(pairs, added, () if limits.max_slowdown is not None else (note,))


def _entries(path: Path) -> dict[tuple[str, str], _Entry]:
    """Reads the artifacts of a run, by format and variant."""
    file = path / MANIFEST if path.is_dir() else path
    artifacts = read_manifest(file)["artifacts"]
    try:
        found = {(str(a["format"]), str(a["variant"])): _entry(a) for a in artifacts}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{str(file)!r} tells of an artifact that cannot be read: {error!r:.200}. Give the "
            "manifest as the run wrote it."
        ) from error
    if not found:
        raise InputError(f"{str(file)!r} tells of no artifacts. Give the manifest of a run.")
    return found


def _entry(values: Mapping[str, Any]) -> _Entry:
    file, latency, conversion = (values[name] for name in ("file", "latency", "conversion"))
    metrics = {}
    for output, standing in (conversion["standings"] if conversion else {}).items():
        agreement = standing["top1_agreement"]
        if standing["metric"] is not None:
            metric = made_of(Metric, standing["metric"])
            metrics[f"{metric.name} of {output}"] = metric
        elif agreement is not None:
            metric = Metric("accuracy", float(agreement), int(standing["samples"]))
            metrics[f"agreement of {output}"] = metric
    return _Entry(
        str(file["path"]) if file else f"{values['format']} {values['variant']}",
        bool(values["accepted"]),
        values["error"],
        float(file["size"]) if file else None,
        float(latency["compressed"]["p50"]) if latency else None,
        metrics,
    )


def _pair(
    fmt: str, variant: str, old: _Entry, new: _Entry | None, limits: checks.Comparison
) -> Pair:
    if new is None:
        return Pair(old.file, fmt, variant, ("it is missing in the new run",), ())
    faults = []
    if old.accepted and not new.accepted:
        failed = f"was not converted: {new.error}" if new.error else "did not pass its verdicts"
        faults.append(f"it {failed} in the new run")
    return Pair(old.file, fmt, variant, tuple(faults), tuple(_figures(old, new, limits)))


def _figures(old: _Entry, new: _Entry, limits: checks.Comparison) -> Iterator[Figure]:
    for name, metric in old.metrics.items():
        limit = _allowed(metric) if limits.max_loss is None else limits.max_loss
        other, grows = new.metrics.get(name), metric.name != "accuracy"
        if other is None:
            yield Figure(name, grows, metric.value, None, limit, None)
        else:
            yield Figure(name, grows, metric.value, other.value, limit, loss_of(metric, other))
    judged = {
        "size": (old.size, new.size, limits.max_growth),
        "latency": (old.latency, new.latency, limits.max_slowdown),
    }
    for name, (before, after, most) in judged.items():
        growth = (after - before) / before if before and after is not None else None
        if before is not None or after is not None:
            yield Figure(name, True, before, after, most, growth)


def _allowed(metric: Metric) -> float:
    """Returns the loss that is allowed by default."""
    if metric.name != "accuracy":
        return ERROR_GROWTH
    value = min(1.0, max(0.0, metric.value))
    standard_error = math.sqrt(value * (1 - value) / max(1, metric.samples))
    return max(LEAST_LOSS, STANDARD_ERRORS * standard_error)
