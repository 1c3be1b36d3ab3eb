"""Whether an artifact predicts what the Keras model predicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.data.metrics import snr_db, top1_agreement
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.isolation import call_in_child
from exporter.verification.probes import Limits, Probe, predict, samples_within
from exporter.verification.tolerance import Predictions, Tolerance, Tolerances, View, views

NOT_FINITE = "not finite"

Outputs = Mapping[str, Mapping[str, Mapping[str, Array]]]
"""Arrays by backend, probe and output."""


@dataclass(frozen=True)
class Comparison:
    """One view of one output, on one probe, in one backend.

    Attributes:
        backend: How the runtime executed the artifact.
        probe: The inputs.
        output: The output.
        view: Whether the values were compared, or their logarithms (for distributions).
        samples: How many samples.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the reference, whose size is taken to be at least
            the root mean square of all its elements.
        rmse: Root mean square difference.
        snr_db: Signal to noise ratio in decibels; infinite if equal.
        top1_agreement: Part of the samples with the same class; None where there are no classes.
        tolerance: What was allowed.
        passed: Whether every element is within the tolerance.
    """

    backend: str
    probe: str
    output: str
    view: View
    samples: int
    max_abs: float
    max_rel: float
    rmse: float
    snr_db: float
    top1_agreement: float | None
    tolerance: Tolerance
    passed: bool

    @property
    def strain(self) -> float:
        """How much of the tolerance is used up, for sorting; infinite if it failed."""
        if not self.passed:
            return math.inf
        return self.max_abs / self.tolerance.atol if self.tolerance.atol else self.max_rel


@dataclass(frozen=True)
class Fault:
    """An output that no comparison can excuse.

    Attributes:
        backend: How the runtime executed the artifact.
        probe: The inputs.
        output: The output.
        kind: ``missing``, ``wrong shape``, ``not finite``, ``all zero`` or ``constant``.
        in_reference: Whether the Keras model's own output is as bad.
    """

    backend: str
    probe: str
    output: str
    kind: str
    in_reference: bool


@dataclass(frozen=True)
class Parity:
    """The comparisons of one artifact, and its faults."""

    comparisons: tuple[Comparison, ...]
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        """Whether there is something compared, all of it within tolerance, and no fault."""
        within = all(comparison.passed for comparison in self.comparisons)
        return bool(self.comparisons) and within and not self.faults


def execute(
    artifact: Artifact, probes: Sequence[Probe], folder: Path, limits: Limits
) -> dict[str, dict[str, dict[str, Array]]]:
    """Predicts all probes with an artifact in every backend of its format, in a fresh process.

    Args:
        artifact: What to run.
        probes: The inputs.
        folder: For the arrays that go to the child and back.
        limits: How many samples each backend predicts.

    Returns:
        Arrays by backend, probe and output.

    Raises:
        ChildError: If the runtime cannot open or run the artifact, or crashes.
    """
    for probe in probes:
        file = folder / f"{probe.name}.npz"
        if not file.exists():
            np.savez(file, **probe.inputs)  # type: ignore[arg-type]
    job = {
        "format": artifact.format,
        "path": str(artifact.path),
        "folder": str(folder),
        "probes": [(probe.name, probe.batch_size) for probe in probes],
        "limits": dict(limits),
    }
    files = call_in_child(f"{__name__}:_execute_here", job)
    results: dict[str, dict[str, dict[str, Array]]] = {}
    for backend, probe_name, file in files:
        with np.load(file) as loaded:
            results.setdefault(backend, {})[probe_name] = {n: loaded[n] for n in loaded.files}
        Path(file).unlink()
    return results


def _execute_here(job: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The child's part of ``execute``: writes one file of outputs a backend and probe."""
    fmt = FORMATS[job["format"]]
    folder = Path(job["folder"])
    files = []
    for backend in fmt.backends:
        runner = fmt.load(Path(job["path"]), backend)
        for name, batch_size in job["probes"]:
            with np.load(folder / f"{name}.npz") as loaded:
                probe = Probe(name, {n: loaded[n] for n in loaded.files}, batch_size)
            outputs = predict(runner, probe, job["limits"][backend])
            file = folder / f"{job['format']}-{backend}-{name}-outputs.npz"
            np.savez(file, **outputs)  # type: ignore[arg-type]
            files.append((backend, name, str(file)))
    return files


def find_faults(
    outputs: Outputs, reference: Predictions, probes: Sequence[Probe], *, limits: Limits
) -> tuple[Fault, ...]:
    """Finds the outputs of an artifact that no tolerance can excuse.

    Args:
        outputs: As ``execute`` returns them.
        reference: The Keras model's predictions by probe and output.
        probes: The inputs.
        limits: As given to ``execute``.
    """
    faults = []
    for backend, by_probe in outputs.items():
        for probe in probes:
            count = samples_within(probe, limits[backend])
            for output, all_expected in reference[probe.name].items():
                expected = all_expected[:count]
                fault = _fault_kind(by_probe[probe.name].get(output), expected)
                in_reference = _fault_kind(expected, expected) == fault
                # A model may saturate on noise; on real data, no useful one is constant.
                if fault and (not in_reference or fault == NOT_FINITE or probe.must_vary):
                    faults.append(Fault(backend, probe.name, output, fault, in_reference))
    return tuple(faults)


def compare(
    outputs: Outputs,
    reference: Predictions,
    probes: Sequence[Probe],
    tolerances: Tolerances,
    *,
    limits: Limits,
    classes: frozenset[str],
) -> Parity:
    """Compares what an artifact predicted with the reference.

    Args:
        outputs: As ``execute`` returns them.
        reference: The Keras model's predictions by probe and output.
        probes: The inputs.
        tolerances: What is allowed, by probe, output and view.
        limits: As given to ``execute``.
        classes: Outputs whose largest element names a class.
    """
    comparisons: list[Comparison] = []
    for backend, by_probe in outputs.items():
        for probe in probes:
            count = samples_within(probe, limits[backend])
            for output, all_expected in reference[probe.name].items():
                expected = all_expected[:count]
                values = by_probe[probe.name].get(output)
                if values is None or values.shape != expected.shape:
                    continue
                for view, transform in views(expected).items():
                    tolerance = tolerances.get((probe.name, output, view))
                    if tolerance is not None:
                        agreement = top1_agreement(values, expected) if output in classes else None
                        comparisons.append(
                            Comparison(
                                backend=backend,
                                probe=probe.name,
                                output=output,
                                view=view,
                                samples=len(values),
                                **_differences(transform(values), transform(expected), tolerance),
                                top1_agreement=agreement,
                                tolerance=tolerance,
                            )
                        )
    faults = find_faults(outputs, reference, probes, limits=limits)
    return Parity(tuple(comparisons), faults)


def _fault_kind(values: Array | None, expected: Array) -> str | None:
    kind = None
    if values is None:
        kind = "missing"
    elif values.shape != expected.shape:
        kind = "wrong shape"
    elif values.dtype.kind == "f":
        if not np.isfinite(values).all():
            kind = NOT_FINITE
        elif not values.any():
            kind = "all zero"
        elif len(values) > 1 and (values == values[:1]).all():
            kind = "constant"
    return kind


def _differences(actual: Array, wanted: Array, tolerance: Tolerance) -> dict[str, Any]:
    difference = np.abs(actual - wanted)
    magnitude = np.abs(wanted)
    rms = np.sqrt(np.mean(wanted**2)) if wanted.size else 0.0
    scale = np.maximum(magnitude, rms)
    relative = np.divide(difference, scale, out=np.zeros_like(difference), where=scale > 0)
    return {
        "max_abs": float(difference.max(initial=0.0)),
        "max_rel": float(relative.max(initial=0.0)),
        "rmse": float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0,
        "snr_db": snr_db(actual, wanted),
        # Written so that NaN fails.
        "passed": bool((difference <= tolerance.atol + tolerance.rtol * magnitude).all()),
    }
