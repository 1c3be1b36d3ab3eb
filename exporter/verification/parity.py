"""Whether an artifact predicts what the Keras model predicts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array, Task
from exporter.data.metrics import snr_db
from exporter.disk import disk_error
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.isolation import MOST_USES, call_in_child
from exporter.verification.probes import Limits, Probe, predict, samples_within
from exporter.verification.tolerance import Predictions, Tolerance, Tolerances, View, views

NOT_FINITE = "not finite"
ALL_ZERO, CONSTANT = "all zero", "constant"


@dataclass(frozen=True)
class Execution:
    """The predictions of an artifact by ``execute``, beside those of the Keras model."""

    outputs: Mapping[str, Predictions]
    reference: Predictions
    probes: Sequence[Probe]
    limits: Limits

    def pairs(self) -> Iterator[tuple[str, Probe, str, Array | None, Array]]:
        """Yields backend, probe, output, its values (None if it is missing) and the reference."""
        for backend, by_probe in self.outputs.items():
            for probe in self.probes:
                count = samples_within(probe, self.limits[backend])
                for output, expected in self.reference[probe.name].items():
                    yield backend, probe, output, by_probe[probe.name].get(output), expected[:count]


@dataclass(frozen=True)
class Comparison:
    """One view of one output, on one probe, in one backend.

    Attributes:
        view: Whether values were compared, or their logarithms (for distributions).
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the reference, whose size is taken to be at least
            the root mean square of all its elements.
        rmse: Root mean square difference.
        snr_db: Signal to noise ratio in decibels; infinite if equal.
        top1_agreement: Part of the samples with the same class; None without classes.
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
    """A defect of an output that no tolerance excuses, unless the Keras model has it as well.

    Attributes:
        kind: ``missing``, ``wrong shape``, ``not finite``, ``all zero`` or ``constant``.
        in_reference: Whether the Keras model's own output has the same defect, or varies by less
            than the noise that integers may add.
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
        """Whether anything was compared, and is within tolerance, and there is no new fault."""
        within = all(comparison.passed for comparison in self.comparisons)
        new = any(not fault.in_reference for fault in self.faults)
        return bool(self.comparisons) and within and not new


def execute(
    artifact: Artifact,
    probes: Sequence[Probe],
    folder: Path,
    limits: Limits,
    macs: int | None = None,
) -> dict[str, dict[str, dict[str, Array]]]:
    """Predicts all probes with an artifact in the backends with a limit, in a process of its own.

    Arrays by backend, probe and output go to that process and back through files in ``folder``.
    ``macs`` are those of one sample, by which the time is limited; without, the size tells.

    Raises:
        ChildError: If the runtime cannot open or run the artifact, crashes, or comes to a limit.
        DiskError: If the disk is full.
    """
    for probe in probes:
        file = folder / f"{probe.name}.npz"
        if not file.exists():
            save_arrays(file, probe.inputs)
    job = {
        "format": artifact.format,
        "path": str(artifact.path),
        "folder": str(folder),
        "probes": [(probe.name, probe.batch_size) for probe in probes],
        "limits": dict(limits),
    }
    results: dict[str, dict[str, dict[str, Array]]] = {}
    samples = sum(samples_within(probe, most) for probe in probes for most in limits.values())
    answer = call_in_child(
        f"{__name__}:_execute_here",
        job,
        FORMATS[artifact.format].imports,
        work=samples * (macs or MOST_USES * artifact.size),
        data=artifact.size + sum(a.nbytes for probe in probes for a in probe.inputs.values()),
    )
    for backend, probe_name, written in answer:
        results.setdefault(backend, {})[probe_name] = load_arrays(Path(written))
        Path(written).unlink()
    return results


def _execute_here(job: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Runs in the child of ``execute``: writes one file of outputs for each backend and probe."""
    fmt, folder, files = FORMATS[job["format"]], Path(job["folder"]), []
    for backend, limit in job["limits"].items():
        runner = fmt.load(Path(job["path"]), backend)
        for name, batch_size in job["probes"]:
            probe = Probe(name, load_arrays(folder / f"{name}.npz"), batch_size)
            outputs = predict(runner, probe, limit)
            file = folder / f"{fmt.name}-{backend}-{name}-outputs.npz"
            save_arrays(file, outputs)
            files.append((backend, name, str(file)))
    return files


def save_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """Writes a ``.npz`` file.

    Raises:
        DiskError: If the disk is full.
    """
    try:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise disk_error(error, file.parent) or error from error


def load_arrays(file: Path) -> dict[str, Array]:
    """Reads a ``.npz`` file whole."""
    with np.load(file) as arrays:
        return dict(arrays)


def find_faults(
    execution: Execution, noise: Mapping[str, float] | None = None
) -> tuple[Fault, ...]:
    """Finds the outputs of an artifact that no tolerance excuses.

    ``noise`` is the root mean square error that each output may have: on all probes but the first,
    which has the test data, it may hide what the reference varies by, and the output be constant.
    """
    faults = []
    for backend, probe, output, values, expected in execution.pairs():
        kind = _fault_kind(values, expected)
        if kind:
            alike = _fault_kind(expected, expected) == kind
            if kind in {ALL_ZERO, CONSTANT} and noise and probe is not execution.probes[0]:
                varies = np.sqrt(np.mean(expected**2)) if kind == ALL_ZERO else spread(expected)
                alike |= bool(varies <= noise[output])
            faults.append(Fault(backend, probe.name, output, kind, alike))
    return tuple(faults)


def spread(values: Array) -> float:
    """Returns the root mean square of what samples differ by from their mean."""
    return float(np.std(values - values.mean(axis=0)))


def compare(execution: Execution, tolerances: Tolerances, tasks: Mapping[str, Task]) -> Parity:
    """Compares an artifact with the reference in the views that have a tolerance.

    ``tasks`` tells for each output what its values mean.
    """
    comparisons = []
    for backend, probe, output, values, expected in execution.pairs():
        if values is None or values.shape != expected.shape:
            continue
        task = tasks.get(output, Task())
        agreement = task.agreement(values, expected) if task.classes else None
        for view, transform in views(expected).items():
            tolerance = tolerances.get((probe.name, output, view))
            if tolerance is not None:
                comparison = Comparison(
                    backend=backend,
                    probe=probe.name,
                    output=output,
                    view=view,
                    samples=len(values),
                    **_differences(transform(values), transform(expected), tolerance),
                    top1_agreement=agreement,
                    tolerance=tolerance,
                )
                comparisons.append(comparison)
    return Parity(tuple(comparisons), find_faults(execution))


def _fault_kind(values: Array | None, expected: Array) -> str | None:
    if values is None:
        return "missing"
    if values.shape != expected.shape:
        return "wrong shape"
    if values.dtype.kind != "f":
        return None
    kinds = {
        NOT_FINITE: not np.isfinite(values).all(),
        ALL_ZERO: not values.any(),
        CONSTANT: len(values) > 1 and (values == values[:1]).all(),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _differences(actual: Array, wanted: Array, tolerance: Tolerance) -> dict[str, Any]:
    # The same infinity, or NaN in both, is no difference.
    same = (actual == wanted) | (np.isnan(actual) & np.isnan(wanted))
    difference = np.abs(np.where(same, 0.0, actual) - np.where(same, 0.0, wanted))
    finite = np.isfinite(wanted)
    magnitude = np.abs(np.where(finite, wanted, 0.0))
    rms = np.sqrt(np.mean(magnitude[finite] ** 2)) if finite.any() else 0.0
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
