"""Carries out whole runs on the corpus of small architectures, and says what each format took.

The corpus, which the tests use as well, is tests/end_to_end/corpus.py. All weights are random, and
so are the inputs; rank 0.5.

    scripts/benchmark corpus [--hub] [NAME]...

``--hub`` carries out runs on backbones of keras_hub instead, where that is installed, which the
exporter itself does not need: in its environment, ``pip install keras-hub``.
"""

import argparse
import importlib.util
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
    parser.add_argument("names", nargs="*")
    parser.add_argument("--hub", action="store_true", help="take the backbones of keras_hub")
    options = parser.parse_args()
    if options.hub and importlib.util.find_spec("keras_hub") is None:
        print("keras_hub is not installed: pip install keras-hub", file=sys.stderr)
        return 0
    own = list(corpus.CORPUS)
    if options.hub:
        from scripts.bench.lib import hub  # noqa: F401, adds its own

        own = [name for name in corpus.CORPUS if name not in own]
    names = options.names or own
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
