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

A job has limits of time and memory, for a damaged artifact may make a runtime loop or eat memory.
They are far above what sound ones need; two environment variables set others.
"""

import atexit
import ctypes
import gc
import importlib
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.disk import disk_error, full_disk, scratch_folder
from exporter.errors import DiskError, RecipeError

SECONDS_VARIABLE = "EXPORTER_CHILD_SECONDS"
"""Environment variable that sets the seconds which each job may take."""

MEMORY_VARIABLE = "EXPORTER_CHILD_MEMORY"
"""Environment variable that sets the GB which each job may take beyond what its server has."""

LEAST_SECONDS = 600.0
LEAST_GB = 8.0

SLOWEST = 2e8
"""Multiply-accumulates a second that any runtime is sure to reach."""

MOST_USES = 1000
"""Times that a byte of an artifact is taken to be multiplied by in one sample, where MACs are not
known."""

COPIES = 16
"""Times that a runtime may hold its data: packed, transposed, between its layers."""

_FORKS = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|bad allocation|MemoryError|\bOOM\b|[Oo]ut of memory|"
    r"[Cc]annot allocate memory|[Uu]nable to allocate|[Ff]ailed to allocate memory"
)


class ChildError(Exception):
    """The function raised in the child, or the child died; the message tells which."""


@dataclass(frozen=True)
class _Limits:
    seconds: float
    gb: float

    @classmethod
    def of(cls, work: float, data: int) -> "_Limits":
        return cls(
            _from_environment(SECONDS_VARIABLE) or LEAST_SECONDS + work / SLOWEST,
            _from_environment(MEMORY_VARIABLE) or LEAST_GB + COPIES * data / 1e9,
        )


def check_limits() -> None:
    """Raises a RecipeError if an environment variable sets a limit that is none."""
    _Limits.of(0, 0)


def _from_environment(name: str) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RecipeError(
            f"The environment variable {name} must be a number above 0. Received: {text!r}."
        )
    return value


def call_in_child(
    target: str,
    job: Mapping[str, Any],
    imports: tuple[str, ...] = (),
    *,
    work: float = 0,
    data: int = 0,
) -> Any:
    """Calls a function in a child process and returns its result.

    Args:
        target: ``module:function`` within this package; it takes a JSON value and returns one.
        job: The argument of the function.
        imports: Modules worth importing once for all jobs that name the same; none of them may
            start a thread.
        work: Multiply-accumulates that it computes, for the limit of time.
        data: Bytes that it reads, for the limit of memory.

    Raises:
        ChildError: If the function raised, the process died, or it came to a limit.
        DiskError: If a disk is full.
        RecipeError: If the environment sets a limit that is none.
    """
    limits = _Limits.of(work, data)
    too_large = ChildError(
        f"the runtime needed more than {limits.gb:,.3g} GB of memory ({MEMORY_VARIABLE} sets "
        "another limit)"
    )
    request = {"target": target, "job": job, "imports": imports, "cwd": str(Path.cwd())}
    with _job_folder({**request, "gb": limits.gb}) as folder:
        noise, answer_file = folder / "noise", folder / "answer"
        code = _run(folder, imports, limits.seconds)
        if code is None:
            raise ChildError(
                f"the runtime did not end within {limits.seconds:,.4g} s ({SECONDS_VARIABLE} sets "
                "another limit)"
            )
        if code or not answer_file.exists():
            if full := full_disk(folder):
                raise full
            if _OUT_OF_MEMORY.search(noise.read_text(errors="replace")):
                raise too_large
            ending = (
                f"crashed with {signal.Signals(-code).name}"
                if code < 0
                else f"ended with exit code {code}"
            )
            words = noise.read_text(errors="replace").strip().rpartition("\n")[2]
            raise ChildError(f"the runtime {ending}: {words or 'no message'}")
        answer = json.loads(answer_file.read_text())
    if "full" in answer:
        raise DiskError(answer["full"])
    if "error" in answer:
        raise too_large if answer["memory"] else ChildError(answer["error"])
    return answer["result"]


@contextmanager
def _job_folder(request: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a folder with a request and an empty file for what the job prints."""
    try:
        with scratch_folder() as folder:
            (folder / "request").write_text(json.dumps(request))
            (folder / "noise").touch()
            yield folder
    except OSError as error:
        raise disk_error(error) or error from error


class _Server:
    """A process that runs jobs; one that cannot fork runs a single job."""

    def __init__(self, environment: Mapping[str, str], noise: Path) -> None:
        self.environment = environment
        with noise.open("ab") as file:
            self._process = subprocess.Popen(
                # -P: a random.py in the current folder would stand in for Python's own.
                [sys.executable, "-P", "-m", "exporter.isolation", *_mortal()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                bufsize=0,
                env=environment,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def run(self, folder: Path, seconds: float) -> int | None:
        """Runs the job in a folder and returns its exit code, or the server's if that died.

        None if the time was over, and the server was ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        over = threading.Event()

        def end() -> None:
            over.set()
            self._process.kill()

        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        try:
            if stdin and stdout:
                with suppress(BrokenPipeError):  # The exit code tells what the server died of.
                    stdin.write(f"{json.dumps(str(folder))}\n".encode())
                if reply := stdout.readline():
                    return int(reply)
            code = self._process.wait()
            return None if over.is_set() else code
        finally:
            timer.cancel()

    def end(self) -> None:
        with self._process:  # Waits.
            self._process.kill()


_idle: dict[tuple[str, ...], _Server] = {}
"""Servers that wait for a job, by what they have imported; one at work is in no table."""


def _mortal() -> list[str]:
    """Returns the argument by which a server ends with this process, even while it imports.

    The system ends it with the *thread* that started it, so other threads' servers do without: they
    see the end of their standard input, between two jobs and during one.
    """
    main = threading.current_thread() is threading.main_thread()
    return [str(os.getpid())] if main and _FORKS else []


def _run(folder: Path, imports: tuple[str, ...], seconds: float) -> int | None:
    """Runs the job in a folder and returns its exit code; None if the time was over."""
    environment = environment_of_children()
    server = _idle.pop(imports, None)
    if server and (server.ended or server.environment != environment):
        server.end()
        server = None
    server = server or _Server(environment, folder / "noise")
    try:
        code = server.run(folder, seconds)
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
    if parent := sys.argv[1:]:
        die_with(int(parent[0]))
    # Ctrl-C and a terminal's end reach the whole process group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
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
            die_with(server)
            return _answer(request, folder)
        os.close(running)
        if 0 in select.select([0, ended], [], [])[0]:
            return None  # The parent is gone, for it has nothing to say before it got a reply.
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(replies, f"{code}\n".encode())
    return None


def environment_of_children() -> dict[str, str]:
    """Returns an environment in which another Python finds this package, wherever it was found."""
    root = str(Path(__file__).parent.parent)
    # An empty element would stand for the current folder.
    path = filter(None, [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def die_with(parent: int) -> None:
    """Has the system kill this process when its parent ends, whatever it is doing then.

    Only Linux can.
    """
    if not _FORKS:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It had ended before.
        os._exit(1)


def _limit_memory(gb: float) -> None:
    """Limits what may be allocated beyond what the server has; files that are mapped are free.

    The address space is no measure, for runtimes reserve much more of it than they use.
    """
    if sys.platform == "linux":
        import resource

        status = Path("/proc/self/status").read_text()
        taken = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = int(taken * 1024 + gb * 1e9)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _answer(request: Mapping[str, Any], folder: Path) -> None:
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    module, _, function = request["target"].partition(":")
    try:
        os.chdir(request["cwd"])
        _limit_memory(request["gb"])
        answer = {"result": getattr(importlib.import_module(module), function)(request["job"])}
    except Exception as error:  # The parent raises whatever a runtime raises.
        text = f"{type(error).__name__}: {error}"
        answer = {"error": text, "memory": bool(_OUT_OF_MEMORY.search(text))}
        if full := disk_error(error):
            answer["full"] = str(full)
    content = json.dumps(answer)
    (folder / "answer").write_text(content)


if __name__ == "__main__":
    _serve()
