"""Runs a function of this package in a fresh Python process.

Runtimes run native code, and a bad artifact can crash them; a fresh process knows nothing of the
model that the artifact was made from; and thread counts hold from the start. ``multiprocessing``
would run the caller's script again, so the child is started by hand.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ChildError(Exception):
    """The function raised in the child, or the child died; the message tells which."""


def call_in_child(
    target: str, job: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Any:
    """Calls a function in a child process.

    Args:
        target: ``module:function`` within this package; it takes a JSON object and returns one.
        job: The argument.
        environment: Variables to add to the child's environment.

    Returns:
        What the function returned.

    Raises:
        ChildError: If it raised, or the process died.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    completed = subprocess.run(
        [sys.executable, "-m", "exporter.isolation", target],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    if completed.returncode or not completed.stdout:
        last_words = completed.stderr.strip().rpartition("\n")[2] or "no message"
        raise ChildError(f"the runtime {_ending(completed.returncode)}: {last_words}")
    answer = json.loads(completed.stdout)
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer["result"]


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"crashed with {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _main() -> None:
    # Ctrl-C reaches the whole process group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, _, function = sys.argv[1].partition(":")
    job = json.load(sys.stdin)
    # Native libraries print to standard output as well, some of it as the process ends.
    answer_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = {"result": getattr(importlib.import_module(module), function)(job)}
    except Exception as error:  # Whatever a runtime raises is the parent's result.
        answer = {"error": f"{type(error).__name__}: {error}"}
    with answer_file:
        print(json.dumps(answer), file=answer_file)


if __name__ == "__main__":
    _main()
