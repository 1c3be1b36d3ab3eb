"""What is concluded from times, and how it is printed; real ones are in tests/commands."""

import io

import pytest
from rich.console import Console

from exporter.formats.base import OperatorTime
from exporter.report.benchmark import Benchmark, Timed, benchmark_dict, csv_text, print_benchmark
from exporter.targets.turns import Turn

STEADY = (1.0, 1.01, 0.99, 1.0, 1.01, 1.0, 0.99)


def timed(file, *rounds, batch=1, memory=2_000_000):
    turns = tuple(Turn(0.5, memory, (1e-3 * time,) * 5) for time in rounds)
    return Timed(file, "xnnpack", 123_456_789, batch, 1, turns)


def benchmark(*found, control=STEADY, **more):
    empty = {"skipped": {}, "failed": {}, "operators": {}, "unprofiled": {}, "notes": ()}
    return Benchmark(found, (timed(found[0].file, *control),), **{**empty, **more})


def printed(found, width=80):
    stream = io.StringIO()
    print_benchmark(found, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("others", "control", "told_apart"),
    [
        ([1.1 * time for time in STEADY], STEADY, True),
        ([0.9 * time for time in STEADY], STEADY, True),
        # Of a whole order, but no larger than that of a file from itself.
        ([1.1 * time for time in STEADY], [1.2 * time for time in STEADY], False),
        # Larger, but of no order.
        ([1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 0.9], STEADY, False),
    ],
)
def test_noise_is_told_from_differences(others, control, told_apart):
    found = benchmark(timed("a", *STEADY), timed("b", *others), control=control)
    (difference,) = found.differences
    assert difference.told_apart is told_apart
    assert difference.ratio == pytest.approx(1.1, rel=0.02)
    text = " ".join(printed(found).split())
    assert ("too noisy to tell b from a: they differ by" in text) is not told_apart
    assert ("larger than the noise" in text) is told_apart
    assert benchmark_dict(found)["differences"][0]["told_apart"] is told_apart


def test_files_that_were_called_otherwise_are_not_compared():
    assert not benchmark(timed("a", *STEADY), timed("b", *STEADY, batch=2)).differences


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal_and_80_columns(width):
    long = "a-folder-with-a-long-name/" * 4 + "model.tflite"
    found = benchmark(
        timed("uncompressed/model-int8.tflite", *STEADY),
        timed(long, *STEADY, memory=None),
        skipped={"c": "skipped"},
        failed={"b": "it cannot be run: " + "x" * 100},
        operators={"a": [OperatorTime("Fully Connected (NC, QS8, QC8W) GEMM", 3, 2e-6)]},
        unprofiled={long: "no time by operator"},
        notes=("A note.",),
    )
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= min(80, width)
    for told in ("A note.", "c: skipped", "100.0%", "count whole microseconds"):
        assert told in " ".join(text.split())


def test_the_table_has_a_line_for_each():
    lines = csv_text(
        benchmark(timed("a", *STEADY), timed("b,c", *STEADY, memory=None))
    ).splitlines()
    assert lines[0].startswith("file,runtime,bytes,batch,threads,load_ms,p50_ms")
    assert lines[1].startswith("a,xnnpack,123456789,1,1,500.0,1.0,")
    assert lines[2].endswith(",,35")
    assert lines[2].startswith('"b,c"')
