import io

import pytest
from rich.console import Console

from exporter.report import progress
from exporter.report.progress import ConsoleProgress


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def test_a_pipe_gets_a_line_for_each_stage_and_each_of_few_steps(pipe):
    shown = ConsoleProgress(pipe)
    shown.note("a note of [brackets]")
    with shown.track("Exporting", 2) as advance:
        advance(0, "tflite, int8")
        with shown.track("Inner", 2) as inner:
            inner(1, "one of many")
        advance(2, "done")
    with shown.track("Calibrating", 2) as advance:
        advance(1, "")
    assert pipe.file.getvalue().splitlines() == [
        "a note of [brackets]",
        "Exporting ...",
        "Exporting: 0 of 2, tflite, int8",
        "Inner ...",
        "Exporting: 2 of 2, done",
        "Calibrating ...",
    ]


def test_of_many_steps_a_pipe_gets_a_line_now_and_then(pipe, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ConsoleProgress(pipe).track("Training", 1000) as advance:
        for step in range(1, 1001):
            now[0] += 0.03
            advance(step, "")
    first, *others = pipe.file.getvalue().splitlines()
    assert first == "Training ..."
    assert others == [f"Training: {step} of 1000" for step in (334, 668)]


def test_progress_is_a_bar_on_a_terminal():
    stream = io.StringIO()
    shown = ConsoleProgress(Console(file=stream, width=80, force_terminal=True))
    with shown.track("Training", 2) as advance:
        advance(1, "loss 0.5")
    assert "Training" in stream.getvalue()
    assert "━" in stream.getvalue()


def test_bars_may_be_nested():
    stream = io.StringIO()
    shown = ConsoleProgress(Console(file=stream, width=80, force_terminal=True))
    with shown.track("Searching", 2) as outer, shown.track("Factorizing", 3) as inner:
        outer(1, "half")
        inner(2, "layer")
    assert "Searching" in stream.getvalue()
    assert "Factorizing" in stream.getvalue()
