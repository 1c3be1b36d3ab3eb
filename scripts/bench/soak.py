"""Exports and verifies in one process, again and again: scripts/benchmark soak [--rounds N].

Each round exports a tiny model to TFLite and ONNX, and verifies both. The first quarter of the
rounds warms up. After it, memory is to grow by 0.05 MB a round at most (a line fitted to what is
resident after garbage is collected). Open files, threads, children and temporary files are not to
grow at all: the most in the last half of those rounds is compared with the most in the first half.
The table shows these, and of memory the means of the halves.

Exits with 1 if a goal is missed.
"""

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

MB_A_ROUND = 0.05
FORMATS = ("tflite", "onnx")


class State(NamedTuple):
    """What the process holds after a round."""

    resident: float
    files: int
    threads: int
    children: int
    temporary: int


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="at least 8; default: 200")
    rounds = parser.parse_args().rounds
    if rounds < 8:
        parser.error(f"--rounds: must be at least 8. Received: {rounds}.")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name) / "temporary"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)  # Of children, and of this one.
        start = time.perf_counter()
        states = soak(rounds, Path(name) / "output", temporary)
        seconds = (time.perf_counter() - start) / rounds
    kept = states[rounds // 4 :]
    resident = np.array([state.resident for state in kept])
    slope = float(np.polyfit(range(len(kept)), resident, 1)[0])
    # Means, for only some rounds give memory back.
    halves = [float(half.mean()) for half in np.array_split(resident, 2)]
    rows = [
        ("memory, MB", *halves, slope, MB_A_ROUND),
        ("open files", *growth([state.files for state in kept])),
        ("threads", *growth([state.threads for state in kept])),
        ("children", *growth([state.children for state in kept])),
        ("temporary files", *growth([state.temporary for state in kept])),
    ]
    print(f"{rounds} rounds of {seconds:.1f} s, {rounds - len(kept)} of them to warm up\n")
    print("| what | first half | last half | growth | goal |\n|---|---:|---:|---:|---:|")
    print("| {} | {:.1f} | {:.1f} | {:.3f} a round | {} |".format(*rows[0]))
    for row in rows[1:]:
        print("| {} | {} | {} | {} | {} |".format(*row))
    return int(any(grown > goal for *_, grown, goal in rows))


def growth(counts: Sequence[int]) -> tuple[int, int, int, int]:
    """Returns the most in the first and in the last half, the growth, and the goal."""
    half = len(counts) // 2
    first, last = max(counts[:half]), max(counts[half:])
    return first, last, last - first, 0


def soak(rounds: int, output: Path, temporary: Path) -> list[State]:
    """Exports and verifies so many times; returns the state after each round."""
    import keras

    import exporter

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3, name="scores")]
    model, states = keras.Sequential([keras.Input((12,)), *layers]), []
    for number in range(rounds):
        for artifact in exporter.export(model, output, FORMATS, force=True):
            if not exporter.verify(artifact, model).passed:
                raise RuntimeError(f"{artifact.path.name} of round {number} did not pass.")
        gc.collect()
        states.append(look(temporary))
    return states


def look(temporary: Path) -> State:
    """Looks at this process, and at the folder for temporary files."""
    own = Path("/proc/self")
    pages = int((own / "statm").read_text().split()[1])
    tasks = list((own / "task").iterdir())
    return State(
        pages * resource.getpagesize() / 1e6,
        len(os.listdir(own / "fd")),  # noqa: PTH208 - it counts the listing itself, each time
        len(tasks),
        sum(len((task / "children").read_text().split()) for task in tasks),
        sum(1 for _ in temporary.rglob("*")),
    )


if __name__ == "__main__":
    sys.exit(main())
