"""What whole runs of the command line share."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

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
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        # Each run ends with its exit code, between zeros, on both streams.
        outputs, errors = (text.split("\0")[:-1] for text in (done.stdout, done.stderr))
        return [
            Outcome(int(code), stdout, stderr)
            for stdout, code, stderr in zip(outputs[::2], outputs[1::2], errors[::2], strict=True)
        ]

    return run


class Bare(NamedTuple):
    """An environment with LiteRT, NumPy and what prints, and without TensorFlow and Keras."""

    python: Path
    site: Path
    environment: dict[str, str]


@pytest.fixture
def bare(tmp_path):
    """Makes an environment without TensorFlow and Keras; a test may add packages to its site."""
    venv.create(tmp_path / "venv", with_pip=False)
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    wanted = ("ai_edge_litert", "numpy", "numpy.libs", "flatbuffers", "rich", "pygments")
    wanted += ("markdown_it", "mdurl", "typing_extensions.py")
    installed = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    for name in wanted:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    for name in ("ai_edge_litert", "numpy", "flatbuffers", "rich"):
        for described in installed.glob(f"{name}-*.dist-info"):
            (site / described.name).symlink_to(described)
    python = tmp_path / "venv" / "bin" / "python"
    return Bare(python, site, {**os.environ, "PYTHONPATH": str(ROOT)})
