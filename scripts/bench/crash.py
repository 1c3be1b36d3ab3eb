"""Kills runs, and looks at what is left: scripts/benchmark crash [--kills N].

- A whole run, the former or the new one, is to be in the folder after a kill before any rename of a
  publication and one ``verify`` of the folder, which proves all artifacts.
- Nothing of killed runs is to be left, in the output folder or in TMPDIR, after the next clean run;
  what is left is listed below the table.
- No child is to be alive 5 s after its parent was killed, at random moments.

Exits with 1 if a goal is missed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.lib.children import children_of

PATIENCE = 5.0
"""Seconds after which no child may be alive."""

# Runs the command line, and kills it before a rename of a publication; 0 counts them instead.
DRIVER = """
import os, signal, sys
from pathlib import Path

from scripts.bench.lib.children import children_of
import exporter.targets.latency
from exporter.cli import main

rename, before, count = Path.rename, int(sys.argv[1]), 0
exporter.targets.latency.ROUND_SECONDS = 0.001

def counted(self, target):
    global count
    if ".staging-" in str(self) and "rejected" not in str(target) or ".former" in str(target):
        count += 1
        if count == before:
            os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = counted
code = main(sys.argv[2:])
print(count)
sys.exit(code)
"""

MODEL = """
import sys, keras
keras.utils.set_random_seed(0)
layers = [keras.layers.Dense(48, activation="relu"), keras.layers.Dense(9, name="scores")]
keras.Sequential([keras.Input((40,)), *layers]).save(sys.argv[1])
"""


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        whole, renames = place.kill_before_each_rename()
        alive, left, sound = place.kill_at_random(options.kills, random.Random(options.seed))
    rows = [
        ("whole runs after a kill before each rename", whole, renames),
        ("whole runs after a kill at random", sound, options.kills),
        ("children alive 5 s after a kill", alive, 0),
        ("folders and files left after a clean run", len(left), 0),
    ]
    print("| what | found | goal |\n|---|---:|---:|")
    for row in rows:
        print("| {} | {} | {} |".format(*row))
    for each in left:
        print(f"\nLeft: {each}")
    return int(any(found != goal for _, found, goal in rows))


class Place:
    """A folder with a model, an output folder, and one for temporary files."""

    def __init__(self, folder: Path) -> None:
        """Makes the model, and a first run of it."""
        self._folder, self._output = folder, folder / "run"
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        self._environment = {**os.environ, "TMPDIR": str(self._temporary)}
        model = folder / "model.keras"
        subprocess.run([sys.executable, "-P", "-c", MODEL, model], check=True, capture_output=True)
        self._run = [
            *("run", str(model), "--data", "none", "--rank", "4", "--format", "tflite,onnx"),
            *("--output", str(self._output), "--force", "--quiet"),
        ]

    def kill_before_each_rename(self) -> tuple[int, int]:
        """Returns in how many cases a whole run was left, and how many there are."""
        self._finish(self._start(0))  # The former run.
        renames = int(self._finish(self._start(0)))
        whole = 0
        for number in range(1, renames + 1):
            killed = self._start(number)
            if killed.wait() != -signal.SIGKILL:
                raise RuntimeError(f"The run was not killed before rename {number}.")
            whole += self._is_whole()
        return whole, renames

    def kill_at_random(self, kills: int, chance: random.Random) -> tuple[int, list[str], int]:
        """Returns the children that lived on, what is left at the end, and the whole runs.

        A file of a clean run that is gone at the end is told as well.
        """
        start = time.monotonic()
        self._finish(self._start(0))
        seconds = time.monotonic() - start
        before = {path.name for path in self._output.iterdir()}
        alive = sound = 0
        for _ in range(kills):
            killed = self._start(0)
            time.sleep(chance.uniform(0, seconds))
            killed.kill()
            killed.wait()
            time.sleep(PATIENCE)
            alive += len(children_of(killed.pid))
            # A look alone: verify would remove what the next run must.
            sound += (self._output / "manifest.json").exists() or self._is_whole()
        self._finish(self._start(0))
        after = {path.name for path in self._output.iterdir()}
        in_temporary = {path.name for path in self._temporary.iterdir()}
        left = [f"{name} in the output folder" for name in sorted(after - before)]
        left += [f"{name} is gone from the output folder" for name in sorted(before - after)]
        left += [f"{name} in TMPDIR" for name in sorted(in_temporary)]
        return alive, left, sound

    def _start(self, number: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-c", DRIVER, str(number), *self._run],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _finish(self, process: "subprocess.Popen[str]") -> str:
        output = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"A run that was not killed ended with {process.returncode}.")
        return output

    def _is_whole(self) -> bool:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "exporter", "verify", str(self._output), "--quiet"],
            cwd=self._folder,
            env=self._environment,
            check=False,
        )
        return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
