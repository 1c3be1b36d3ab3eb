"""Functions in a fresh process: what they return, raise, print and die of."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.isolation import ChildError, call_in_child

HELPERS = """
import ctypes
import os
import sys

libc = ctypes.CDLL(None)


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
    return os.environ.get(job)


def identity(job):
    return os.getpid()


def python(job):
    import subprocess

    return subprocess.run([sys.executable, *job], capture_output=True, text=True).stdout


def keras_is_loaded(job):
    return "keras" in sys.modules
"""


@pytest.fixture(scope="session")
def call(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Calls a helper above in a child, by its name."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "isolation_helpers.py").write_text(HELPERS)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(folder)])

    def in_child(name: str, job: Any = None, **environment: str) -> Any:
        return call_in_child(f"isolation_helpers:{name}", job, {"PYTHONPATH": path, **environment})

    return in_child


@pytest.mark.parametrize("job", [{}, {"a": [1, 2.5, None, "ü\n"], "b": {"c": True}}, [], "text"])
def test_returns_what_the_function_returned(call: Callable[..., Any], job: Any) -> None:
    assert call("echo", job) == {"seen": job}


def test_runs_in_another_process(call: Callable[..., Any]) -> None:
    assert call("identity") not in {os.getpid(), call("identity")}


def test_functions_of_the_package_need_no_path() -> None:
    with pytest.raises(ChildError, match=r"^KeyError: 'format'$"):
        call_in_child("exporter.benchmark:_measure_here", {})


def test_child_knows_nothing_that_the_parent_loaded(call: Callable[..., Any]) -> None:
    import keras

    assert keras
    assert call("keras_is_loaded") is False


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


def test_environment_is_added_to_that_of_the_parent(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_TEST_INHERITED", "kept")

    assert call("variable", "EXPORTER_TEST_GIVEN", EXPORTER_TEST_GIVEN="given") == "given"
    assert call("variable", "EXPORTER_TEST_INHERITED", EXPORTER_TEST_GIVEN="given") == "kept"
    assert "EXPORTER_TEST_GIVEN" not in os.environ
