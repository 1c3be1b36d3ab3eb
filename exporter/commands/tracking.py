"""Logs finished runs and sweeps to MLflow."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exporter.errors import ExporterError, InputError, TrackingError, brief
from exporter.formats.extras import Extra
from exporter.inputs import checked_path
from exporter.output import MANIFEST, finish_publication
from exporter.report.manifest import read_manifest, what_lacks
from exporter.tradeoff.front import Sweep
from exporter.tradeoff.page import PAGE_FILE
from exporter.tradeoff.table import CSV_FILE

MLFLOW = Extra("mlflow", ("mlflow-skinny", "alembic"))

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # As of onnxruntime.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7 of them take minutes, without a word.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # Seconds.
}
"""MLflow's own variables, where the user has not set them."""

_BATCH = 1000
"""Most metrics that MLflow takes at a time."""


def log_mlflow(folder: str | Path, experiment: str) -> str:
    """Logs a finished run to MLflow: parameters, metrics and all of its files.

    Parameters are the options of the recipe. Metrics are figures of the model before and after,
    such as ``after/params``, and of each artifact, such as ``tflite/int8/bytes``; times are in
    seconds. MLflow's own variables, such as ``MLFLOW_TRACKING_URI``, say where to.

    Args:
        folder: Folder of the run.
        experiment: Name of the experiment, which is made if there is none.

    Returns:
        The identifier that MLflow has given the run.

    Raises:
        RecipeError: If MLflow is not installed.
        InputError: If the folder holds no run, or lacks a file of it.
        TrackingError: If MLflow cannot be reached, or refuses the run.
    """
    MLFLOW.require("Logging to MLflow")
    folder = Path(checked_path(str(folder)))
    finish_publication(folder)
    return _log(folder, experiment)


def log_sweep(sweep: Sweep, experiment: str) -> str:
    """Logs the tables of a sweep, the figures of what it chose, and each trial as a child run.

    Returns:
        The identifier that MLflow has given the sweep.

    Raises:
        TrackingError: If MLflow cannot be reached, or refuses a run.
    """
    point = sweep.chosen
    chosen = point and {
        "bytes": point.size,
        "loss": point.loss,
        "test_loss": point.test_loss,
        "latency": point.latency,
    }
    with _logged(
        sweep.output,
        experiment,
        [sweep.output / name for name in (CSV_FILE, PAGE_FILE)],
        params={},
        metrics=_named("chosen", chosen or {}),
        tags={"command": sweep.command or "none"},
    ) as parent:
        for trial in dict.fromkeys(point.trial for point in sweep.points):
            _log(Path(trial), experiment, {"mlflow.parentRunId": parent})
    return parent


def _log(folder: Path, experiment: str, tags: Mapping[str, str] | None = None) -> str:
    manifest = read_manifest(folder / MANIFEST)
    try:
        files = [folder / entry["path"] for entry in manifest["files"]]
        params = {"model_name": manifest["model_name"]}
        for options in manifest["recipe"].values():
            params |= {name: value for name, value in options.items() if value is not None}
        metrics = dict(_metrics(manifest))
        verdict = {"passed": str(manifest["passed"]), "exit_code": str(manifest["exit_code"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(folder / MANIFEST)!r} is not the manifest of a run. Received: "
            f"{what_lacks(error)} Run exporter again."
        ) from error
    if missing := [str(file) for file in files if not file.exists()]:
        raise InputError(f"The run lacks its files {', '.join(missing)}. Run exporter again.")
    tags = {**verdict, **(tags or {})}
    files.append(folder / MANIFEST)
    with _logged(folder, experiment, files, params=params, metrics=metrics, tags=tags) as run:
        return run


def _metrics(manifest: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the figures of a manifest that are numbers, by name."""
    yield from _named("", {"seconds": manifest["seconds"]}).items()
    for when, totals in manifest["totals"].items():
        yield from _named(when, totals).items()
    for output in manifest["compression"]["outputs"]:
        for when, metric in (("before", output["baseline"]), ("after", output["compressed"])):
            if metric:
                yield from _named(f"{when}/{output['output']}", _scores(metric)).items()
    for found in manifest["artifacts"]:
        file, latency, conversion = found["file"], found["latency"], found["conversion"]
        figures = {
            "accepted": found["accepted"],
            "bytes": file and file["size"],
            "ratio": found["ratio"],
            "latency": latency and latency["compressed"]["p50"],
            "baseline_latency": latency and latency["baseline"]["p50"],
            "speedup": latency and latency["speedup"],
        }
        label = f"{found['format']}/{found['variant']}"
        yield from _named(label, figures).items()
        for name, standing in conversion["standings"].items() if conversion else ():
            scores = _scores(standing["metric"]) | {
                key: standing[key] for key in ("snr_db", "top1_agreement")
            }
            yield from _named(f"{label}/{name}", scores).items()


def _scores(metric: Mapping[str, Any] | None) -> dict[str, Any]:
    return {metric["name"]: metric["value"]} if metric else {}


def _named(prefix: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures that are known, under names that MLflow takes."""
    return {
        re.sub(r"[^\w\-. :/]", "_", f"{prefix}/{name}".lstrip("/")): float(value)
        for name, value in figures.items()
        if value is not None
    }


@contextmanager
def _logged(
    folder: Path,
    experiment: str,
    files: Sequence[Path],
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> Iterator[str]:
    """Logs a run, which ends with the block: finished, or failed or killed if that breaks off."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        client = MlflowClient()
        found = client.get_experiment_by_name(experiment)
        group = found.experiment_id if found else client.create_experiment(experiment)
        run: str = client.create_run(group, tags=dict(tags), run_name=folder.name).info.run_id
        try:
            client.log_batch(
                run, params=[Param(name, str(value)) for name, value in params.items()]
            )
            now = int(time.time() * 1000)
            logged = [Metric(name, value, now, 0) for name, value in metrics.items()]
            for start in range(0, len(logged), _BATCH):
                client.log_batch(run, metrics=logged[start : start + _BATCH])
            for file in files:
                inner = file.relative_to(folder)
                if file.is_dir():
                    client.log_artifacts(run, str(file), inner.as_posix())
                else:
                    at = inner.parent.as_posix()
                    client.log_artifact(run, str(file), None if at == "." else at)
            yield run
        except BaseException as error:
            # What broke off is told, whether the store takes this or not.
            with suppress(Exception):
                client.set_terminated(run, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        client.set_terminated(run)
    except ExporterError:  # Of the block.
        raise
    except Exception as error:  # Whatever the store raises: HTTP, databases, disks.
        raise TrackingError(
            f"MLflow did not take {str(folder)!r}: {brief(error, 160)} All files are there. "
            f"Once MLflow can be reached, exporter.log_mlflow(FOLDER, {experiment!r}) logs "
            "a run, and the same sweep, whose trials are not repeated, logs a sweep."
        ) from error
