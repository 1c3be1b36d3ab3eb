"""Writes ``manifest.json``: all findings of a run, for machines.

The file follows ``manifest_schema()``. ``SCHEMA_VERSION`` grows when a reader of the old version
could misread the new one; version 1 had the options of the recipe without their groups. Paths are
relative to the folder of the manifest; a figure that is infinite or not a number is null.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import InputError, brief
from exporter.formats.base import measure
from exporter.inputs import checked_path, parse_json, read_json
from exporter.output import MANIFEST, REJECTED, UNCOMPRESSED
from exporter.recipe import recipe_schema
from exporter.report.results import ArtifactReport, CompressionReport, Report
from exporter.verification.verdict import ConversionVerdict

SCHEMA_VERSION = 2

FOLDERS = (REJECTED, UNCOMPRESSED)
"""Folders of a run whose entries are artifacts."""


def manifest_of(report: Report, folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder that holds the files of the run and nothing else."""
    entries, files = _listed(folder)
    values = {
        "schema_version": SCHEMA_VERSION,
        "entries": entries,
        "files": files,
        **report_dict(report),
    }
    return parse_json(json.dumps(values, allow_nan=False))  # type: ignore[no-any-return]


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Writes what ``manifest_of`` returned."""
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _listed(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the names of entries, the manifest last, and all files but it with their hashes."""
    entries = sorted(path.name for path in folder.iterdir())
    inner = [each for name in FOLDERS for each in sorted((folder / name).glob("*"))]
    files = []
    for path in (*(folder / name for name in entries if name not in FOLDERS), *inner):
        size, sha256 = measure(path)
        files.append({"path": path.relative_to(folder).as_posix(), "bytes": size, "sha256": sha256})
    return [*entries, MANIFEST], files


def with_files(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a manifest in which the files of a folder take the place of those of their names."""
    names, files = _listed(folder)
    kept = [entry for entry in manifest["files"] if entry["path"] not in names]
    return {
        **manifest,
        "entries": [*sorted({*manifest["entries"], *names} - {MANIFEST}), MANIFEST],
        "files": sorted(kept + files, key=lambda entry: _place(entry["path"])),
    }


def _place(path: str) -> tuple[bool, str]:
    return path.startswith(tuple(f"{folder}/" for folder in FOLDERS)), path


def read_manifest(file: Path) -> dict[str, Any]:
    """Reads the manifest of a run.

    Raises:
        InputError: If the file is none, or of a later version of the schema.
    """
    checked_path(str(file))
    try:
        manifest = read_json(file, strict=True)
    except (OSError, ValueError) as error:
        raise _no_manifest(file, f"no JSON: {brief(error)}") from error
    parts = ("files", "artifacts")
    listed = isinstance(manifest, dict) and [manifest.get(part) for part in parts]
    if not listed or not all(
        isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in listed
    ):
        raise _no_manifest(file, "JSON without the lists 'files' and 'artifacts'.")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InputError(
            f"A manifest must have a schema version of at most {SCHEMA_VERSION}. Received: "
            f"{version!r:.50} in {str(file)!r}. Read it with the version of exporter that wrote it."
        )
    return manifest  # type: ignore[no-any-return]


def _no_manifest(file: Path, received: str) -> InputError:
    return InputError(
        f"{str(file)!r} is not the manifest of a run. Received: {received} Give the folder of a "
        "run, or the Keras model that the artifact was made from."
    )


def what_lacks(error: Exception) -> str:
    """Says what a damaged manifest lacks, by the error that reading it raised."""
    return f"one without the field {error}." if isinstance(error, KeyError) else brief(error)


def manifest_schema() -> dict[str, Any]:
    """Returns the JSON schema of the manifest: the file in this folder, with that of a recipe."""
    text = (Path(__file__).parent / "manifest.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    schema["$defs"]["recipe"] = recipe_schema()
    return schema


def report_dict(report: Report) -> dict[str, Any]:
    """Returns the report as values that JSON knows."""
    return {
        "partial": report.partial,
        "passed": report.passed,
        "warnings": list(report.warnings),
        "exit_code": report.exit_code,
        "recipe": report.recipe.to_dict(),
        "card": plain(report.card),
        "data": {"notes": list(report.data_notes), "samples": dict(report.samples)},
        **compression_dict(report),
        "budget": _judged(report.budget, "held"),
        "compression": _judged(report.compression, "passed"),
        "artifacts": [_artifact(artifact, report.output) for artifact in report.artifacts],
        "versions": dict(report.versions),
    }


def compression_dict(report: CompressionReport) -> dict[str, Any]:
    """Returns the findings of a compression as values that JSON knows."""
    tuning = report.finetuning
    return {
        "model_name": report.model_name,
        "factorized": report.factorized,
        "training": plain(report.training),
        "finetuning": tuning
        and {**plain(tuning), "adaptation": _judged(tuning.adaptation, "taken")},
        "channels": plain(report.channels),
        "layers": [
            {
                **plain(layer.plan),
                "discarded_energy": layer.discarded_energy,
                "predicted_error": layer.relative_error,
                "data_aware": layer.data_aware,
                "cost_before": layer.cost_before,
                "cost_after": layer.cost_after,
                "measured_error": layer.measured_error,
            }
            for layer in report.layers
        ],
        "totals": {"before": plain(report.before), "after": plain(report.after)},
        "seconds": report.seconds,
    }


def _artifact(report: ArtifactReport, output: Path) -> dict[str, Any]:
    artifact, conversion, latency = report.artifact, report.conversion, report.latency
    path = artifact and artifact.path.relative_to(output).as_posix()
    return {
        "format": report.format,
        "variant": report.variant,
        "accepted": report.accepted,
        "error": report.error,
        "file": artifact and {**plain(artifact), "path": path},
        "baseline_size": report.baseline_size,
        "ratio": report.ratio,
        "latency": latency and {**plain(latency), "speedup": latency.speedup},
        "validation": plain(report.validation),
        "trials": plain(report.trials),
        "gauge": plain(report.gauge),
        "alternative": plain(report.alternative),
        "worse_than_alternative": report.is_dominated,
        "target_cost": plain(report.target_cost),
        "comparison_error": report.comparison_error,
        "conversion": conversion and verdict_dict(conversion),
    }


def verdict_dict(verdict: ConversionVerdict) -> dict[str, Any]:
    """Returns the verdict on an artifact as values that JSON knows."""
    return {
        "passed": verdict.passed,
        "error": verdict.error,
        "metrics": plain(verdict.metrics),
        "standings": plain(verdict.standings),
        "parity": _judged(verdict.parity, "passed"),
        "quality": _judged(verdict.quality, "passed"),
        "structure": _judged(verdict.structure, "passed"),
        "layers": plain(verdict.layers),
        "losses": plain(verdict.losses),
        "departure": plain(verdict.departure),
    }


def _judged(value: Any, verdict: str) -> Any:
    """Returns a dataclass as values that JSON knows, with a property that is its verdict."""
    return value and {verdict: getattr(value, verdict), **plain(value)}


def plain(value: Any) -> Any:
    """Turns dataclasses of numbers into values that JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
