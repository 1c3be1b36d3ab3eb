"""What an artifact costs to run: multiply-accumulates and latency."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.formats import FORMATS
from exporter.formats.base import Format
from exporter.isolation import call_in_child

ROUNDS = 7
ROUND_SECONDS = 0.12
WARM_UP_CALLS = 5


@dataclass(frozen=True)
class Latency:
    """Times of single calls of a runtime, one thread, batch 1.

    Attributes:
        p50: Median, in seconds.
        p90: 90th percentile, in seconds.
        calls: How many were timed.
    """

    p50: float
    p90: float
    calls: int


@dataclass(frozen=True)
class LatencyPair:
    """Baseline and compressed model in the same runtime, timed in turns.

    Attributes:
        baseline: Of the baseline's artifact.
        compressed: Of the compressed model's.
    """

    baseline: Latency
    compressed: Latency

    @property
    def speedup(self) -> float:
        """Ratio of the medians, baseline / compressed."""
        return self.baseline.p50 / self.compressed.p50


def measure_latency(
    fmt: Format, baseline: Path, compressed: Path, inputs: Mapping[str, Array], folder: Path
) -> LatencyPair:
    """Times two artifacts in turns, in a process of their own with one thread.

    Args:
        fmt: Their format.
        baseline: Artifact of the baseline.
        compressed: Artifact of the compressed model.
        inputs: One batch, by input name.
        folder: For the array that goes to the child.

    Raises:
        ChildError: If the runtime cannot run them.
    """
    file = folder / "latency.npz"
    np.savez(file, **inputs)  # type: ignore[arg-type]
    job = {
        "format": fmt.name,
        "inputs": str(file),
        "baseline": str(baseline),
        "compressed": str(compressed),
    }
    answer = call_in_child(f"{__name__}:_measure_here", job, fmt.thread_environment)
    return LatencyPair(Latency(**answer["baseline"]), Latency(**answer["compressed"]))


def _measure_here(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The child's part of ``measure_latency``."""
    fmt = FORMATS[job["format"]]
    with np.load(job["inputs"]) as loaded:
        inputs = {name: loaded[name] for name in loaded.files}
    calls = {
        name: fmt.load(Path(job[name]), fmt.backends[0], threads=1).prepare(inputs)
        for name in ("baseline", "compressed")
    }
    per_round = {name: _calls_per_round(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].extend(_time(call, per_round[name]))
    return {
        name: {
            "p50": statistics.median(seconds),
            "p90": float(np.quantile(seconds, 0.9)),
            "calls": len(seconds),
        }
        for name, seconds in times.items()
    }


def _calls_per_round(call: Callable[[], object]) -> int:
    seconds = statistics.median(_time(call, WARM_UP_CALLS))
    return max(3, min(2000, round(ROUND_SECONDS / max(seconds, 1e-9))))


def _time(call: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds
