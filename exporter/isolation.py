"""Runs a function of this package in a fresh Python process.

A bad artifact can crash the native code of a runtime; a fresh process has no trace of the model
that the artifact was made from; and thread counts hold from the start. ``multiprocessing`` would
run the caller's script again, so the child is started by hand.
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
    """Calls a function in a child process and returns its result.

    Args:
        target: ``module:function`` within this package; it takes a JSON value and returns one.
        job: The argument of the function.
        environment: Variables to add to the child's environment.

    Raises:
        ChildError: If the function raised, or the process died.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    completed = subprocess.run(
        # -P: a random.py in the current folder would stand in for Python's own.
        [sys.executable, "-P", "-m", "exporter.isolation", target],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    if completed.returncode or not completed.stdout:
        code = completed.returncode
        ending = (
            f"crashed with {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        last_words = completed.stderr.strip().rpartition("\n")[2] or "no message"
        raise ChildError(f"the runtime {ending}: {last_words}")
    answer = json.loads(completed.stdout)
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer["result"]


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
    except Exception as error:  # The parent raises whatever a runtime raises.
        answer = {"error": f"{type(error).__name__}: {error}"}
    with answer_file:
        print(json.dumps(answer), file=answer_file)


if __name__ == "__main__":
    _main()
