"""What a diagnosis prints, and when it passes. What it finds is tested with the verb."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from exporter.report.diagnosis import (
    Diagnosis,
    Machine,
    Package,
    Place,
    Trial,
    print_diagnosis,
)

LONG = "It needs something that takes many words to tell of, and a command: " + "x" * 200
MACHINE = Machine("Linux x86_64", "A processor", 2, {"AVX2": True, "AMX": None}, None)
DIAGNOSIS = Diagnosis(
    "0.1.0",
    MACHINE,
    (Place("temporary files", Path("/tmp") / ("long" * 40), 2 * 10**9),),
    (
        Package("Python", ">=3.11,<3.14", "3.11.7", True),
        Package("tensorflow", ">=2.21,<2.22", None, True),
        Package("tflite-micro", ">=0.dev20261023182759,<1", "0.dev20261023182759", True, "micro"),
    ),
    (Trial("tflite", "works", "in xnnpack"), Trial("onnx", "missing", LONG)),
    (Trial("here", "works", ""), Trial("arm64", "missing", LONG)),
    (Trial("other 1.0", "works", "fast, in exporter.formats"),),
    ("Do something that takes many words to tell of, so that it needs a second line.",),
    "python -m pip install " + " ".join(f"'package-{number}>=1,<2'" for number in range(20)),
)
UNFIT = Package("keras", ">=3.15", "2.0", False)


def printed(diagnosis, width):
    stream = io.StringIO()
    print_diagnosis(diagnosis, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal_and_80_columns(width):
    text = printed(DIAGNOSIS, width)
    assert max(map(len, text.splitlines())) <= min(80, width)
    assert text.replace("\n", "").replace(" ", "").count("x" * 200) == 2


def test_the_command_is_one_for_a_shell():
    text = printed(DIAGNOSIS, 80)
    lines = text[text.index("python -m pip") :].split("All that")[0]
    assert " ".join(lines.replace("\\\n", " ").split()) == DIAGNOSIS.install


def test_it_tells_what_is_known_and_what_is_not():
    text = printed(DIAGNOSIS, 80)
    for fact in ("AVX2 yes, AMX unknown", "Free memory: unknown", "2.0 GB", "missing", "fast, in"):
        assert fact in text


def test_what_is_missing_is_no_failure_and_what_is_broken_is():
    assert DIAGNOSIS.passed
    broken = Trial("c", "fails", "It crashed.")
    for other in (
        replace(DIAGNOSIS, packages=(*DIAGNOSIS.packages, UNFIT)),
        replace(DIAGNOSIS, formats=(broken,)),
        replace(DIAGNOSIS, targets=(broken,)),
    ):
        assert not other.passed
        assert "NOT ALL" in printed(other, 80)
