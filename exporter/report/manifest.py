"""``manifest.json``: all that a run found, for machines. Other reports are drawn from it.

The file follows ``manifest.schema.json`` in this folder. ``SCHEMA_VERSION`` grows when a reader of
the old version could misread the new one. Paths are relative to the folder of the manifest; what is
infinite or not a number is null.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.formats.base import measure
from exporter.output import MANIFEST, REJECTED
from exporter.report.results import ArtifactReport, FineTuningReport, Report

SCHEMA_VERSION = 1


def write_manifest(report: Report, folder: Path) -> None:
    """Writes the manifest beside the files that it tells of.

    Args:
        report: What the run found.
        folder: Holds what the run wrote, and nothing else.
    """
    entries = sorted(path.name for path in folder.iterdir())
    written = [folder / name for name in entries if name != REJECTED]
    rejected = sorted((folder / REJECTED).iterdir()) if REJECTED in entries else []
    files = []
    for path in (*written, *rejected):
        size, sha256 = measure(path)
        files.append({"path": path.relative_to(folder).as_posix(), "bytes": size, "sha256": sha256})
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "entries": [*entries, MANIFEST],
        "files": files,
        **report_dict(report),
    }
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def report_dict(report: Report) -> dict[str, Any]:
    """Returns the report as values that JSON knows."""
    return {
        "passed": report.passed,
        "exit_code": report.exit_code,
        "recipe": report.recipe.to_dict(),
        "model_name": report.model_name,
        "card": _plain(report.card),
        "data": {"notes": list(report.data_notes), "samples": dict(report.samples)},
        "training": _plain(report.training),
        "finetuning": report.finetuning and _finetuning(report.finetuning),
        "layers": [
            {
                **_plain(layer.plan),
                "discarded_energy": layer.discarded_energy,
                "predicted_error": layer.relative_error,
                "data_aware": layer.data_aware,
            }
            for layer in report.layers
        ],
        "totals": {"before": _plain(report.before), "after": _plain(report.after)},
        "budget": report.budget and {"held": report.budget.held, **_plain(report.budget)},
        "compression": {"passed": report.compression.passed, **_plain(report.compression)},
        "artifacts": [_artifact(artifact, report.output) for artifact in report.artifacts],
        "versions": dict(report.versions),
        "seconds": report.seconds,
    }


def _finetuning(report: FineTuningReport) -> dict[str, Any]:
    adaptation = report.adaptation
    return {
        **_plain(report),
        "adaptation": adaptation and {"taken": adaptation.taken, **_plain(adaptation)},
    }


def _artifact(report: ArtifactReport, output: Path) -> dict[str, Any]:
    artifact, conversion, latency = report.artifact, report.conversion, report.latency
    return {
        "format": report.format,
        "variant": report.variant,
        "accepted": report.accepted,
        "error": report.error,
        "file": None
        if artifact is None
        else {
            **_plain(artifact),
            "path": artifact.path.relative_to(output).as_posix(),
        },
        "baseline_size": report.baseline_size,
        "ratio": report.ratio,
        "latency": latency and {**_plain(latency), "speedup": latency.speedup},
        "trials": _plain(report.trials),
        "gauge": _plain(report.gauge),
        "comparison_error": report.comparison_error,
        "conversion": None
        if conversion is None
        else {
            "passed": conversion.passed,
            "error": conversion.error,
            "metrics": _plain(conversion.metrics),
            "parity": conversion.parity
            and {"passed": conversion.parity.passed, **_plain(conversion.parity)},
            "quality": conversion.quality
            and {"passed": conversion.quality.passed, **_plain(conversion.quality)},
            "structure": conversion.structure
            and {"passed": conversion.structure.passed, **_plain(conversion.structure)},
        },
    }


def _plain(value: Any) -> Any:
    """Turns dataclasses of numbers into dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
