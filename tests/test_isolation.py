"""Functions in another process: what they return, raise, print and die of, and what is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import DiskError, RecipeError
from exporter.formats import FORMATS
from exporter.isolation import ChildError, call_in_child, check_limits
from scripts.bench.lib.children import children_of

HELPERS = """
import ctypes
import os
import sys
import time

libc = ctypes.CDLL(None)
importer = os.getpid()
environment = dict(os.environ)
calls = []


def echo(job):
    return {"seen": job}


def fail(job):
    raise ValueError(f"cannot do {job['what']}\\nfor reasons")


def leave(job):
    sys.exit("left")


def abort(job):
    os.abort()


def end(job):
    print("chatter", flush=True)
    print("last words", file=sys.stderr, flush=True)
    os._exit(job["code"])


def chatter(job):
    print("printed by Python")
    print('{"error": "not this"}', flush=True)
    os.write(1, b"printed by the system \\xff\\n")
    libc.printf(b"printed by C, and written as the process ends\\n")
    return "answer"


def unspeakable(job):
    return {1, 2}


def variable(job):
    return [os.environ.get(job), environment.get(job)]


def server(job):
    return os.getppid()


def identity(job):
    return os.getpid()


def count(job):
    calls.append(job)
    return [importer, len(calls)]


def large(job):
    sys.stderr.write("x" * job)
    sys.stdout.write("y" * job)
    return "z" * job


def linger(job):
    with open(job, "w") as file:
        print(os.getppid(), os.getpid(), flush=True, file=file)
    time.sleep(60)


def hang(job):
    ctypes.PyDLL(None).pause()  # In native code, with Python's lock held.


def allocate(job):
    return len(bytearray(job))


def allocate_natively(job):
    libc.malloc.restype = ctypes.c_void_p
    if not libc.malloc(ctypes.c_size_t(job)):
        sys.exit("terminate called after throwing an instance of 'std::bad_alloc'")


def path_of_modules(job):
    return sys.path


def fill(job):
    raise OSError(28, "No space left on device", job)


def standard_input(job):
    return sys.stdin.read()


def folder(job):
    return os.getcwd()


def python(job):
    import subprocess

    return subprocess.run([sys.executable, *job], capture_output=True, text=True).stdout


def is_loaded(job):
    return job in sys.modules


def threads(job):
    # Those of the server, and those that TensorFlow computes with.
    os.environ.update(job)
    import tensorflow as tf

    tf.function(lambda x: tf.matmul(x, x))(tf.ones((9, 9)))
    server, own = (f"/proc/{pid}/task" for pid in (os.getppid(), os.getpid()))
    names = [open(f"{own}/{task}/comm").read() for task in os.listdir(own)]
    return [len(os.listdir(server)), names.count("tf_Compute\\n")]
"""


@pytest.fixture(scope="session")
def call(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Calls a helper above in a child, by its name."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "isolation_helpers.py").write_text(HELPERS)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(folder)])

    def in_child(name: str, job: Any = None, imports: tuple[str, ...] = ()) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            return call_in_child(f"isolation_helpers:{name}", job, imports)

    return in_child


@pytest.mark.parametrize("job", [{}, {"a": [1, 2.5, None, "ü\n"], "b": {"c": True}}, [], "text"])
def test_returns_what_the_function_returned(call: Callable[..., Any], job: Any) -> None:
    assert call("echo", job) == {"seen": job}


def test_runs_in_another_process(call: Callable[..., Any]) -> None:
    assert call("identity") not in {os.getpid(), call("identity")}


def test_functions_of_the_package_need_no_path() -> None:
    with pytest.raises(ChildError, match=r"^KeyError: 'format'$"):
        call_in_child("exporter.targets.latency:_measure_here", {})


def test_child_knows_nothing_that_the_parent_loaded(call: Callable[..., Any]) -> None:
    assert "exporter.formats" in sys.modules
    assert call("is_loaded", "exporter.formats") is False


def test_exception_becomes_an_error_with_kind_and_text(call: Callable[..., Any]) -> None:
    with pytest.raises(ChildError, match=r"^ValueError: cannot do this\nfor reasons$"):
        call("fail", {"what": "this"})


@pytest.mark.parametrize(
    ("name", "job", "message"),
    [
        ("abort", None, r"crashed with SIGABRT"),
        ("end", {"code": 3}, r"ended with exit code 3: last words"),
        ("end", {"code": 0}, r"ended with exit code 0: last words"),
        ("leave", None, r"ended with exit code 1: left"),
        ("unspeakable", None, r"ended with exit code 1: TypeError"),
        ("absent", None, r"AttributeError.*absent"),
    ],
)
def test_child_that_gives_no_answer_is_an_error(
    call: Callable[..., Any], name: str, job: Any, message: str
) -> None:
    with pytest.raises(ChildError, match=message):
        call(name, job)


def test_files_in_the_current_folder_are_no_modules(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('planted')")
    monkeypatch.chdir(tmp_path)

    assert call("echo", [1]) == {"seen": [1]}
    code = "import random, numpy, json, exporter; print('fine')"
    assert call("python", ["-P", "-c", code]) == "fine\n"
    assert "usage: exporter" in call("python", ["-m", "exporter", "--help"])


def test_module_that_is_missing_is_an_error() -> None:
    with pytest.raises(ChildError, match=r"ModuleNotFoundError.*nowhere"):
        call_in_child("nowhere:function", {})


def test_chatter_on_standard_output_is_no_answer(
    call: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("chatter") == "answer"
    assert capfd.readouterr() == ("", "")


def test_environment_is_that_of_the_parent_from_the_start(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("variable", "EXPORTER_TEST_GIVEN") == [None, None]
    monkeypatch.setenv("EXPORTER_TEST_GIVEN", "given")
    assert call("variable", "EXPORTER_TEST_GIVEN") == ["given", "given"]


forks = pytest.mark.skipif(sys.platform != "linux", reason="there are no forks")


def _are_gone(*pids: int) -> bool:
    """Waits until processes have ended; zombies have."""
    for _ in range(200):
        found = [Path(f"/proc/{pid}/stat") for pid in pids]
        if all(not file.exists() or ") Z " in file.read_text() for file in found):
            return True
        time.sleep(0.05)
    return False


@forks
def test_server_imports_a_module_once_and_no_job_sees_what_another_did(
    call: Callable[..., Any],
) -> None:
    server = call("server")
    assert call("count") == call("count") == [server, 1]


@forks
def test_crash_ends_no_more_than_its_job(call: Callable[..., Any]) -> None:
    server = call("server")
    with pytest.raises(ChildError, match="SIGABRT"):
        call("abort")
    assert call("server") == server


@forks
def test_server_that_was_killed_is_replaced(call: Callable[..., Any]) -> None:
    server = call("server")
    os.kill(server, signal.SIGKILL)
    assert _are_gone(server)
    assert call("echo", 1) == {"seen": 1}


def test_large_answers_and_much_chatter_do_not_block(call: Callable[..., Any]) -> None:
    assert len(call("large", 2_000_000)) == 2_000_000


def test_job_has_the_current_folder_and_no_standard_input(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("standard_input") == ""
    monkeypatch.chdir(tmp_path)
    assert call("folder") == str(tmp_path)


def _pids_in(file: Path) -> list[int]:
    """Waits for a job to write which its server's process is, and its own."""
    for _ in range(400):
        if file.exists() and (written := file.read_text()).endswith("\n"):
            return list(map(int, written.split()))
        time.sleep(0.05)
    raise TimeoutError(file)


@forks
def test_job_ends_when_the_parent_stops_waiting(call: Callable[..., Any], tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        pids.extend(_pids_in(tmp_path / "pids"))
        raise InterruptedError

    pids: list[int] = []
    former = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(InterruptedError):
            call("linger", str(tmp_path / "pids"))
    finally:
        signal.signal(signal.SIGALRM, former)
    assert _are_gone(*pids)
    assert call("echo", 1) == {"seen": 1}


PARENT = """
import sys, time
from exporter.formats import FORMATS
from exporter.isolation import call_in_child

file, ending = sys.argv[1:]
if ending == "at work":
    call_in_child("isolation_helpers:linger", file)
print(call_in_child("isolation_helpers:server", None), file=open(file, "w"))
if ending == "idle":
    time.sleep(60)
"""


@forks
@pytest.mark.parametrize(
    ("state", "sign"),
    [
        ("at work", signal.SIGKILL),
        ("at work", signal.SIGTERM),
        ("at work", signal.SIGINT),
        ("idle", signal.SIGKILL),
        ("ends", None),
    ],
)
def test_nothing_stays_behind_when_the_parent_ends(
    call: Callable[..., Any], tmp_path: Path, state: str, sign: signal.Signals | None
) -> None:
    file = tmp_path / "pids"
    environment = {**os.environ, "PYTHONPATH": call("variable", "PYTHONPATH")[0]}
    command = [sys.executable, "-P", "-c", PARENT, str(file), state]
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as parent:
        pids = _pids_in(file)
        if sign == signal.SIGINT:  # Ctrl-C reaches all of them.
            os.killpg(parent.pid, sign)
        elif sign is not None:
            parent.send_signal(sign)
        errors = parent.communicate(timeout=20)[1]
    assert ("KeyboardInterrupt" in errors) == (sign == signal.SIGINT)
    assert parent.returncode == (-sign if sign else 0)
    assert _are_gone(*pids)


@forks
@pytest.mark.slow
def test_tensorflow_starts_no_thread_in_the_server_and_one_in_a_timed_job(
    call: Callable[..., Any],
) -> None:
    fmt = FORMATS["saved_model"]
    assert call("threads", dict(fmt.thread_environment), fmt.imports) == [1, 1]


@forks
def test_parent_that_is_killed_at_any_moment_leaves_no_child(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    code = (
        "import sys; from exporter.isolation import call_in_child\n"
        "call_in_child('isolation_helpers:hang', None, ('numpy', 'xml.dom.minidom'))"
    )
    environment = {**os.environ, "PYTHONPATH": call("variable", "PYTHONPATH")[0]}
    for delay in (0.05, 0.1, 0.15, 0.2, 0.3, 0.6, 1.5):
        with subprocess.Popen([sys.executable, "-P", "-c", code], env=environment) as parent:
            time.sleep(delay)
            parent.kill()
        deadline = time.monotonic() + 5
        while children_of(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert children_of(parent.pid) == []


def test_children_are_found_where_there_are_any(call: Callable[..., Any]) -> None:
    assert call("server") in children_of(os.getpid()) or sys.platform != "linux"


def test_job_that_hangs_ends_at_the_limit(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_CHILD_SECONDS", "1.5")
    others, start = set(children_of(os.getpid())), time.monotonic()
    with pytest.raises(ChildError, match=r"did not end within 1\.5 s.*EXPORTER_CHILD_SECONDS"):
        call("hang")
    assert time.monotonic() - start < 10
    assert _are_gone(*(set(children_of(os.getpid())) - others))
    assert call("echo", 1) == {"seen": 1}


@forks
@pytest.mark.parametrize("name", ["allocate", "allocate_natively"])
def test_job_that_needs_too_much_memory_ends_at_the_limit(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("EXPORTER_CHILD_MEMORY", "0.5")
    with pytest.raises(ChildError, match=r"more than 0\.5 GB of memory.*EXPORTER_CHILD_MEMORY"):
        call(name, 800_000_000)
    assert call("allocate", 100_000_000) == 100_000_000


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf"])
@pytest.mark.parametrize("name", ["EXPORTER_CHILD_SECONDS", "EXPORTER_CHILD_MEMORY"])
def test_limit_that_is_none_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=f"{name} must be a number above 0. Received: '{value}'"):
        check_limits()


@pytest.mark.parametrize("path", ["", ":{0}", "{0}:", "{0}::{0}"])
def test_current_folder_is_not_on_the_path(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    own = call("variable", "PYTHONPATH")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "isolation_helpers.py").write_text("raise RuntimeError('planted')")
    monkeypatch.setenv("PYTHONPATH", path.format(own))
    job = {"what": "isolation_helpers:path_of_modules"}
    if path:
        found = call_in_child(job["what"], None)
        assert not {"", ".", str(tmp_path)} & set(found)
    else:
        with pytest.raises(ChildError, match="ModuleNotFoundError"):
            call_in_child(job["what"], None)


def test_full_disk_of_a_job_is_that_of_the_caller(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"No space left.*bytes free"):
        call("fill", str(tmp_path / "file"))
