"""Measures the latency of artifacts."""

import os
import statistics
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.formats import FORMATS
from exporter.formats.base import Format
from exporter.isolation import MOST_USES, SLOWEST, call_in_child

ROUNDS = 7
ROUND_SECONDS = 0.12
WARM_UP_CALLS = 5


@dataclass(frozen=True)
class Latency:
    """Times of single calls of a runtime, one thread, batch 1.

    Attributes:
        p50: Median, in seconds.
        p90: 90th percentile, in seconds.
        calls: Number of timed calls.
    """

    p50: float
    p90: float
    calls: int


def measure_latency(
    fmt: Format,
    artifacts: Sequence[Path],
    inputs: Mapping[str, Array],
    folder: Path,
    *,
    seconds: float = ROUND_SECONDS,
) -> list[Latency]:
    """Times artifacts of a format in turns on one batch, in a process of their own, one thread.

    The child process reads the inputs, by input name, from a file in ``folder``. Each artifact is
    called for about ``seconds`` in each round.

    Raises:
        ChildError: If the runtime cannot run them.
    """
    file = folder / "latency.npz"
    np.savez(file, **inputs)  # type: ignore[arg-type]
    job = {
        "format": fmt.name,
        "inputs": str(file),
        "artifacts": list(map(str, artifacts)),
        "seconds": seconds,
    }
    size = sum(fmt.size(artifact) for artifact in artifacts)
    # At three calls a round at least.
    calls = WARM_UP_CALLS + 3 * ROUNDS
    work = SLOWEST * ROUNDS * seconds * len(artifacts) + MOST_USES * size * calls
    answer = call_in_child(f"{__name__}:_measure_here", job, fmt.imports, work=work, data=size)
    return [Latency(**values) for values in answer]


def _measure_here(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Times the artifacts of a job in this process, for ``measure_latency``."""
    fmt = FORMATS[job["format"]]
    os.environ.update(fmt.thread_environment)
    with np.load(job["inputs"]) as loaded:
        inputs = dict(loaded)
    timers, counts = [], []
    for path in job["artifacts"]:
        call = fmt.load(Path(path), fmt.backends[0], threads=1).prepare(inputs)
        timers.append(timeit.Timer(call))
        counts.append(warmed_up(timers[-1], job["seconds"]))
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(ROUNDS):
        for timer, count, timed in zip(timers, counts, times, strict=True):
            timed.extend(timer.repeat(count, number=1))
    return [
        {"p50": statistics.median(t), "p90": float(np.quantile(t, 0.9)), "calls": len(t)}
        for t in times
    ]


def warmed_up(timer: timeit.Timer, seconds: float) -> int:
    """Calls a few times, and returns how many calls fill so many seconds, 3 to 2,000."""
    one = statistics.median(timer.repeat(WARM_UP_CALLS, number=1))
    return max(3, min(2000, round(seconds / max(one, 1e-9))))
