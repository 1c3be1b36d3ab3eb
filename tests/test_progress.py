"""What the API tells the logger ``exporter``."""

import logging
import re
import subprocess
import sys

import pytest

import exporter
from exporter.progress import Logged


def test_notes_and_stages_are_information_and_steps_are_for_debugging(caplog):
    caplog.set_level(logging.DEBUG, "exporter")
    Logged().note("100 % of it")
    with pytest.raises(ValueError), Logged().track("Working", 2) as advance:
        advance(1, "half")
        raise ValueError
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    *others, (level, last) = found
    assert others == [("INFO", "100 % of it"), ("DEBUG", "Working: 1 of 2 half")]
    assert (level, bool(re.fullmatch(r"Working: \d+\.\d\d s", last))) == ("INFO", True)


def test_functions_log_what_they_do_and_another_listener_hears_it_instead(build, caplog, listener):
    caplog.set_level(logging.INFO, "exporter")
    model = build("tiny")
    exporter.compress(model, rank=2, progress=listener)
    assert listener.steps
    assert not caplog.records
    exporter.compress(model, rank=2)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Factorizing"]


def test_nothing_is_printed_unless_logging_is_configured():
    code = "from exporter.progress import LOGGER; LOGGER.warning('heard')"
    for setting, heard in (("", ""), ("import logging; logging.basicConfig(); ", "heard")):
        done = subprocess.run(
            [sys.executable, "-c", setting + code], capture_output=True, text=True, check=True
        )
        assert heard in done.stderr
        assert bool(done.stderr) == bool(heard)
