"""The stored proof of a run: inputs, the compressed model's predictions, and tolerances.

Whoever receives an artifact can hold it against this file with the runtime alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.data import Array, Task
from exporter.data.files import read_described, write_described
from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.inputs import made_of
from exporter.isolation import ChildError
from exporter.verification.parity import Execution, compare, execute
from exporter.verification.probes import Probe, samples_within
from exporter.verification.quality import judge_quality
from exporter.verification.rounding import excess_over
from exporter.verification.tolerance import Predictions, Tolerance, Tolerances
from exporter.verification.verdict import ConversionVerdict

MOST_SAMPLES = 256
MOST_BYTES = 4 * 2**20
"""Bytes that the arrays of a probe may take; two batches are always kept."""

MOST_BATCH = 2**20
"""Largest batch that a stored probe may ask for."""

Run = Callable[[Artifact, Sequence[Probe], Path], dict[str, dict[str, dict[str, Array]]]]
"""Predicts probes with an artifact, and returns arrays by backend (the one that ships first), probe
and output; raises a ChildError if the runtime cannot."""


def in_all_backends(
    artifact: Artifact, probes: Sequence[Probe], folder: Path
) -> dict[str, dict[str, dict[str, Array]]]:
    """Predicts in the runtime of the artifact's format; see ``execute``."""
    return execute(artifact, probes, folder, dict.fromkeys(FORMATS[artifact.format].backends))


def recorded_name(artifact: Artifact) -> str:
    """Returns the name under which the outputs of an artifact are recorded."""
    return f"{artifact.format} {artifact.variant}"


@dataclass(frozen=True)
class Reference:
    """What artifacts of one run are held against.

    Attributes:
        probes: Some samples of the probes of the run.
        predictions: Those of the compressed model, by probe and output.
        tolerances: Of artifacts that are not quantized; empty where there were none.
        tasks: What the values of each output mean.
        recorded: What quantized artifacts gave on the first probe in the backend that ships, by
            ``recorded_name`` and output.
    """

    probes: Sequence[Probe]
    predictions: Predictions
    tolerances: Tolerances
    tasks: Mapping[str, Task]
    recorded: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    def thinned(self) -> "Reference":
        """Returns the first samples of each probe, as many as are worth storing."""
        probes, predictions = [], {}
        for probe in self.probes:
            outputs = self.predictions[probe.name]
            arrays = [*probe.inputs.values(), *probe.labels.values(), *outputs.values()]
            sample = sum(array[:1].nbytes for array in arrays)
            affordable = min(MOST_SAMPLES, MOST_BYTES // max(1, sample))
            count = samples_within(probe, max(2 * probe.batch_size, affordable))
            inputs, labels, predictions[probe.name] = (
                {name: array[:count] for name, array in arrays.items()}
                for arrays in (probe.inputs, probe.labels, outputs)
            )
            probes.append(replace(probe, inputs=inputs, labels=labels))
        recorded = {
            name: {output: array[: len(probes[0])] for output, array in outputs.items()}
            for name, outputs in self.recorded.items()
        }
        return replace(self, probes=probes, predictions=predictions, recorded=recorded)

    def save(self, file: Path) -> None:
        """Writes an ``.npz`` file."""
        arrays: dict[str, Array] = {}

        def stored(named: Mapping[str, Array]) -> dict[str, str]:
            keys = {name: str(len(arrays) + number) for number, name in enumerate(named)}
            arrays.update({keys[name]: array for name, array in named.items()})
            return keys

        described = {
            "probes": [
                {
                    "name": probe.name,
                    "batch_size": probe.batch_size,
                    "inputs": stored(probe.inputs),
                    "labels": stored(probe.labels),
                    "outputs": stored(self.predictions[probe.name]),
                }
                for probe in self.probes
            ],
            "tolerances": [[*key, asdict(value)] for key, value in self.tolerances.items()],
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "recorded": {name: stored(outputs) for name, outputs in self.recorded.items()},
        }
        write_described(file, arrays, described)

    @classmethod
    def load(cls, file: Path) -> "Reference":
        """Reads what ``save`` wrote.

        Raises:
            InputError: If the file is none.
        """
        try:
            arrays, described = read_described(file)
            probes, predictions = [], {}
            for each in described["probes"]:
                inputs, labels, outputs = (
                    {name: arrays[key] for name, key in each[part].items()}
                    for part in ("inputs", "labels", "outputs")
                )
                probe = Probe(each["name"], inputs, each["batch_size"], labels)
                _check_probe(probe, outputs)
                probes.append(probe)
                predictions[probe.name] = outputs
            tolerances: dict[Any, Tolerance] = {
                (probe, output, view): made_of(Tolerance, value)
                for probe, output, view, value in described["tolerances"]
            }
            recorded = {
                name: {output: arrays[key] for output, key in keys.items()}
                for name, keys in described["recorded"].items()
            }
            tasks = {name: made_of(Task, values) for name, values in described["tasks"].items()}
            if not probes or len(predictions) < len(probes):
                raise ValueError("it has no probes, or two of the same name.")
            first = predictions[probes[0].name]
            for output, array in (
                pair for outputs in recorded.values() for pair in outputs.items()
            ):
                if (
                    array.dtype.kind not in "biuf"
                    or array.shape != first[output][: len(array)].shape
                ):
                    raise ValueError(f"what it recorded of {output!r:.50} is no such output.")
        except Exception as error:  # NumPy and JSON raise any exception on a damaged file.
            raise InputError(
                f"{str(file)!r} is not the reference of a run: {type(error).__name__}: {error}. "
                "Run exporter again, or verify against the Keras model."
            ) from error
        return cls(probes, predictions, tolerances, tasks, recorded)

    def verify(
        self, artifact: Artifact, folder: Path, run: Run = in_all_backends
    ) -> ConversionVerdict:
        """Runs an artifact, and compares it with the stored predictions.

        What is stored in it is not looked at. Arrays go to other processes and back through
        ``folder``.
        """
        variant = FORMATS[artifact.format].variant(artifact.variant)
        rule = variant.rule
        try:
            outputs = run(artifact, self.probes, folder)
        except (ChildError, OSError, ValueError) as error:
            return ConversionVerdict(None, None, {}, error=str(error), stored=True)
        execution = Execution(outputs, self.predictions, self.probes, dict.fromkeys(outputs))
        if rule is None:
            parity = compare(execution, self.tolerances, self.tasks)
            return ConversionVerdict(parity, None, {}, stored=True)
        shipped, first = next(iter(outputs.values())), self.probes[0].name
        excesses = {}
        # Some processors compute in half precision, others in float32: the rule covers both.
        outputs_kept = self.recorded.get(recorded_name(artifact), {}) if variant.scheme else {}
        for output, recorded in outputs_kept.items():
            values, expected = shipped[first].get(output), self.predictions[first][output]
            if values is not None and values.shape == expected.shape:
                count = len(recorded)
                excesses[output] = excess_over(recorded, values[:count], expected[:count])
        quality = judge_quality(execution, rule, self.tasks, excesses)
        return ConversionVerdict(None, None, {}, quality, stored=True)


def _check_probe(probe: Probe, outputs: Mapping[str, Array]) -> None:
    """Raises a ValueError if a stored probe cannot be run or compared."""
    if not (isinstance(probe.name, str) and re.fullmatch(r"\w+", probe.name)):
        raise ValueError(f"it has a probe called {probe.name!r:.50}.")  # Files are named after it.
    if type(probe.batch_size) is not int or not 1 <= probe.batch_size <= MOST_BATCH:
        raise ValueError(f"it has a probe with batches of {probe.batch_size!r:.50}.")
    arrays = [*probe.inputs.values(), *probe.labels.values(), *outputs.values()]
    if not probe.inputs or not outputs or any(a.dtype.kind not in "biuf" for a in arrays):
        raise ValueError(f"its probe {probe.name!r} has no numbers.")
    if len({len(array) if array.ndim else 0 for array in arrays} - {0}) != 1 or any(
        array.size == 0 for array in arrays
    ):
        raise ValueError(f"its probe {probe.name!r} has not as many samples everywhere.")
