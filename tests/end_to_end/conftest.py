"""What whole runs of the command line share."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

_RUN_EACH = """
import json
import sys
import exporter.targets.latency
from exporter.cli import main
exporter.targets.latency.ROUND_SECONDS = 0.001
for arguments in json.load(sys.stdin):
    if isinstance(arguments, str):
        exec(arguments)
        continue
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        print(f"\\0{code}\\0", end="", file=stream, flush=True)
"""


class Outcome(NamedTuple):
    """What one run of several left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def run_each():
    """Runs the command line several times in one process, for TensorFlow takes long to import.

    A command that is a string is code to run in that process between two others.
    """

    def run(commands, cwd, **environment):
        done = subprocess.run(
            [sys.executable, "-c", _RUN_EACH], input=json.dumps(commands), cwd=cwd,
            env={**os.environ, **environment}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # Each run ends with its exit code, between zeros, on both streams.
        outputs, errors = (text.split("\0")[:-1] for text in (done.stdout, done.stderr))
        return [
            Outcome(int(code), stdout, stderr)
            for stdout, code, stderr in zip(outputs[::2], outputs[1::2], errors[::2], strict=True)
        ]

    return run
