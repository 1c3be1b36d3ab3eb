"""Carries out whole runs on the corpus of small architectures, and says what each format took.

The corpus, which the tests use as well, is tests/end_to_end/corpus.py. All weights are random, and
so are the inputs; rank 0.5.

    scripts/benchmark corpus [NAME]...
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "end_to_end"))
import corpus

import exporter.targets.latency
from exporter.errors import ExporterError

ARTIFACTS = ("saved_model", "tflite", "onnx", "tflite int8", "onnx int8")
SHORT = 100


def main() -> int:
    """Runs the benchmark and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(corpus.CORPUS))
    names = parser.parse_args().names
    exporter.targets.latency.ROUND_SECONDS = 0.001  # Latencies are not shown.
    print(f"| architecture | can be factorized | {' | '.join(ARTIFACTS)} |")
    print(f"|---|---:|{'---|' * len(ARTIFACTS)}")
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = row(corpus.run(name, Path(folder) / "run"))
            except ExporterError as error:
                cells = ["", *[short(str(error))] * len(ARTIFACTS)]
        failed += any(cell != "passed" for cell in cells[1:])
        print(f"| {corpus.CORPUS[name].line} | {' | '.join(cells)} |", flush=True)
    return 1 if failed else 0


def row(report: Any) -> list[str]:
    """Returns the part of the parameters in layers that can be factorized, and the verdicts."""
    plans = [layer.plan for layer in report.layers]
    reached = sum(plan.params_before for plan in plans if plan.shape is not None)
    verdicts = corpus.verdicts(report)
    return [
        f"{reached / report.before.params:.0%}",
        *(short(verdicts[artifact]) or "passed" for artifact in ARTIFACTS),
    ]


def short(reason: str) -> str:
    """Cuts a reason to the width of a cell."""
    text = reason.replace("|", "/").replace("\n", " ")
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


if __name__ == "__main__":
    sys.exit(main())
