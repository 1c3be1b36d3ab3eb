"""Whether an artifact predicts what the Keras model predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.isolation import call_in_child
from exporter.metrics import snr_db, top1_agreement
from exporter.verification.probes import Probe, predict, samples_within
from exporter.verification.tolerance import Predictions, Tolerance, Tolerances, View, views


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
        return (
            bool(self.comparisons) and not self.faults and all(c.passed for c in self.comparisons)
        )

    @property
    def worst(self) -> Comparison | None:
        """The comparison that comes closest to its tolerance, or exceeds it most."""

        def strain(comparison: Comparison) -> float:
            allowed = comparison.tolerance.atol
            if not comparison.passed or not np.isfinite(comparison.max_abs):
                return float("inf")
            return comparison.max_abs / allowed if allowed else comparison.max_abs

        return max(self.comparisons, key=strain, default=None)


def execute(
    artifact: Artifact, probes: Sequence[Probe], folder: Path, limit: int
) -> dict[str, dict[str, dict[str, Array]]]:
    """Predicts all probes with an artifact in every backend of its format, in a fresh process.

    Args:
        artifact: What to run.
        probes: The inputs.
        folder: For the arrays that go to the child and back.
        limit: Backends after the first predict no more samples of a probe than this.

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
        "limit": limit,
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
    for number, backend in enumerate(fmt.backends):
        runner = fmt.load(Path(job["path"]), backend)
        for name, batch_size in job["probes"]:
            with np.load(folder / f"{name}.npz") as loaded:
                probe = Probe(name, {n: loaded[n] for n in loaded.files}, batch_size)
            outputs = predict(runner, probe, job["limit"] if number else None)
            file = folder / f"{job['format']}-{backend}-{name}-outputs.npz"
            np.savez(file, **outputs)  # type: ignore[arg-type]
            files.append((backend, name, str(file)))
    return files


def compare(
    outputs: dict[str, dict[str, dict[str, Array]]],
    reference: Predictions,
    probes: Sequence[Probe],
    tolerances: Tolerances,
    classes: frozenset[str],
) -> Parity:
    """Compares what an artifact predicted with the reference.

    Args:
        outputs: Arrays by backend, probe and output, as ``execute`` returns them.
        reference: The Keras model's predictions by probe and output.
        probes: The inputs.
        tolerances: What is allowed, by probe, output and view.
        classes: Outputs whose largest element names a class.
    """
    comparisons: list[Comparison] = []
    faults: list[Fault] = []
    for backend, by_probe in outputs.items():
        for probe in probes:
            for output, expected in reference[probe.name].items():
                values = by_probe[probe.name].get(output)
                fault = _fault_kind(values, expected, probe)
                if fault is not None:
                    also = _fault_kind(expected, expected, probe) == fault
                    faults.append(Fault(backend, probe.name, output, fault, also))
                if values is None or values.shape[1:] != expected.shape[1:]:
                    continue
                for view in views(expected):
                    tolerance = tolerances.get((probe.name, output, view))
                    if tolerance is not None:
                        comparisons.append(
                            _compared(
                                backend,
                                probe.name,
                                output,
                                view,
                                values,
                                expected[: len(values)],
                                tolerance,
                                output in classes,
                            )
                        )
    return Parity(tuple(comparisons), tuple(faults))


def _fault_kind(values: Array | None, expected: Array, probe: Probe) -> str | None:
    if values is None:
        return "missing"
    if values.shape[1:] != expected.shape[1:] or not 0 < len(values) <= len(expected):
        return "wrong shape"
    if not np.isfinite(values).all():
        return "not finite"
    if not probe.varied or values.dtype.kind != "f":
        return None
    if not values.any():
        return "all zero"
    inputs_vary = any((array != array[:1]).any() for array in probe.inputs.values())
    if inputs_vary and (values == values[:1]).all():
        return "constant"
    return None


def _compared(
    backend: str,
    probe: str,
    output: str,
    view: View,
    values: Array,
    expected: Array,
    tolerance: Tolerance,
    has_classes: bool,
) -> Comparison:
    transform = views(expected)[view]
    actual, wanted = transform(values), transform(expected)
    difference = np.abs(actual - wanted)
    scale = np.maximum(np.abs(wanted), np.sqrt(np.mean(wanted**2)) if wanted.size else 1.0)
    allowed = tolerance.atol + tolerance.rtol * np.abs(wanted)
    relative = np.divide(difference, scale, out=np.zeros_like(difference), where=scale > 0)
    return Comparison(
        backend=backend,
        probe=probe,
        output=output,
        view=view,
        samples=len(values),
        max_abs=float(difference.max(initial=0.0)),
        max_rel=float(relative.max(initial=0.0)),
        rmse=float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0,
        snr_db=snr_db(actual, wanted),
        top1_agreement=top1_agreement(values, expected) if has_classes else None,
        tolerance=tolerance,
        # Written so that NaN fails.
        passed=bool((difference <= allowed).all()),
    )
