"""Runs a function of this package in a process of its own.

A bad artifact can crash the native code of a runtime; a process of its own has no trace of the
model that the artifact was made from; and thread counts hold from the start.

On Linux, a server imports what jobs need once, and forks a process for each job: TensorFlow takes
seconds to import. The server computes nothing and has no threads, for with them a fork would not
be safe (OpenBLAS ends its own before each fork); a library that starts some when it is imported, as
onnxruntime does, must be left to the jobs. The
server ends with this process, and a job with its server. It is replaced when the environment has
changed, for libraries read that as they are imported. Elsewhere, where forks are unsafe or absent,
each job has a server that runs it and ends.

``multiprocessing``, its fork server too, would run the caller's script again and leave standard
output to the children, so processes are started by hand. What is said between them goes through
files, which never fill up as pipes do: a line to the server names a folder, a line from it tells
the exit code.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from exporter.disk import scratch_folder

_FORKS = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1


class ChildError(Exception):
    """The function raised in the child, or the child died; the message tells which."""


def call_in_child(target: str, job: Mapping[str, Any], imports: tuple[str, ...] = ()) -> Any:
    """Calls a function in a child process and returns its result.

    Args:
        target: ``module:function`` within this package; it takes a JSON value and returns one.
        job: The argument of the function.
        imports: Modules worth importing once for all jobs that name the same; none of them may
            start a thread.

    Raises:
        ChildError: If the function raised, or the process died.
    """
    with scratch_folder() as name:
        folder = name
        request = {"target": target, "job": job, "imports": imports, "cwd": str(Path.cwd())}
        (folder / "request").write_text(json.dumps(request))
        noise, answer_file = folder / "noise", folder / "answer"
        noise.touch()
        code = _run(folder, imports)
        if code or not answer_file.exists():
            ending = (
                f"crashed with {signal.Signals(-code).name}"
                if code < 0
                else f"ended with exit code {code}"
            )
            words = noise.read_text(errors="replace").strip().rpartition("\n")[2]
            raise ChildError(f"the runtime {ending}: {words or 'no message'}")
        answer = json.loads(answer_file.read_text())
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer["result"]


class _Server:
    """A process that runs jobs; one that cannot fork runs a single job."""

    def __init__(self, environment: Mapping[str, str], noise: Path) -> None:
        self.environment = environment
        with noise.open("ab") as file:
            self._process = subprocess.Popen(
                # -P: a random.py in the current folder would stand in for Python's own.
                [sys.executable, "-P", "-m", "exporter.isolation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                bufsize=0,
                env=environment,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def run(self, folder: Path) -> int:
        """Runs the job in a folder and returns its exit code, or the server's if that died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin and stdout:
            with suppress(BrokenPipeError):  # The exit code tells what the server died of.
                stdin.write(f"{json.dumps(str(folder))}\n".encode())
            if reply := stdout.readline():
                return int(reply)
        return self._process.wait()

    def end(self) -> None:
        with self._process:  # Waits.
            self._process.kill()


_idle: dict[tuple[str, ...], _Server] = {}
"""Servers that wait for a job, by what they have imported; one at work is in no table."""


def _run(folder: Path, imports: tuple[str, ...]) -> int:
    """Runs the job in a folder and returns its exit code."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    server = _idle.pop(imports, None)
    if server and (server.ended or server.environment != environment):
        server.end()
        server = None
    server = server or _Server(environment, folder / "noise")
    try:
        code = server.run(folder)
    except BaseException:  # Ctrl-C, for one: the server ends, and with it the job.
        server.end()
        raise
    # Another thread may have put its own there meanwhile.
    if server.ended or _idle.setdefault(imports, server) is not server:
        server.end()
    return code


@atexit.register
def _end_servers() -> None:
    while _idle:
        _idle.popitem()[1].end()


if _FORKS:
    # They are children of the parent alone.
    os.register_at_fork(after_in_child=_idle.clear)


def _serve() -> None:
    """Runs jobs until the parent is gone; returns in each process that has run one, too."""
    # Ctrl-C reaches the whole process group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Native libraries print to standard output as well, some of it as the process ends.
    replies = os.dup(1)
    for line in sys.stdin:
        folder = Path(json.loads(line))
        with (folder / "noise").open("ab") as noise:
            os.dup2(noise.fileno(), 1)
            os.dup2(noise.fileno(), 2)
        request = json.loads((folder / "request").read_text())
        if not _FORKS:
            return _answer(request, folder)
        for module in (*request["imports"], request["target"].partition(":")[0]):
            with suppress(Exception):  # The job finds out by itself.
                importlib.import_module(module)
        gc.freeze()  # Else a job would destroy at its end all that was imported: seconds of work.
        server = os.getpid()
        ended, running = os.pipe()  # The end of the job closes its end.
        if (child := os.fork()) == 0:
            os.close(replies)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # The server may have died before that.
            return _answer(request, folder) if os.getppid() == server else None
        os.close(running)
        if 0 in select.select([0, ended], [], [])[0]:
            return None  # The parent is gone, for it has nothing to say before it got a reply.
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(replies, f"{code}\n".encode())
    return None


def _answer(request: Mapping[str, Any], folder: Path) -> None:
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    module, _, function = request["target"].partition(":")
    try:
        os.chdir(request["cwd"])
        answer = {"result": getattr(importlib.import_module(module), function)(request["job"])}
    except Exception as error:  # The parent raises whatever a runtime raises.
        answer = {"error": f"{type(error).__name__}: {error}"}
    content = json.dumps(answer)
    (folder / "answer").write_text(content)


if __name__ == "__main__":
    _serve()
