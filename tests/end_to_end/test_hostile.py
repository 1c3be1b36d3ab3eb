"""Broken input of every kind ends in an error of one line: a sample of the benchmark's cases."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
hostile = sys.modules["hostile"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hostile)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "seeds"
    hostile.make_seeds(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_case_is_a_traceback_a_hang_or_a_loss_of_memory(seeds):
    found = list(hostile.results(0, range(300), seeds))
    bad = [result for result in found if result.outcome in hostile.BAD]
    assert not bad, f"scripts/benchmark hostile --seed 0 --only {bad[0].number}: {bad[0]}"
    assert {result.kind for result in found} >= {".keras", ".npz and .npy", "paths", "artifacts"}


@pytest.mark.parametrize(
    ("code", "text", "trace", "grown", "outcome"),
    [
        (0, "", "", 0, hostile.GOOD),
        (2, "exporter: error: It is no file.\n", "", 0, hostile.GOOD),
        (2, "exporter: error: It is\nno file.\n", "", 0, hostile.UNCLEAR),
        (2, "", "", 0, hostile.UNCLEAR),
        (-6, "", "", 0, hostile.UNCLEAR),
        (0, "a library's chatter", "", 0, hostile.UNCLEAR),
        (None, "", "KeyError: 1", 0, hostile.TRACEBACK),
        (2, "exporter: error: Unable to allocate 9 TiB.\n", "", 0, hostile.MEMORY),
        (0, "", "", 2**31, hostile.MEMORY),
    ],
)
def test_outcomes_are_told_apart(code, text, trace, grown, outcome):
    assert hostile.judged(code, text, trace, grown, quiet=True) == outcome
