"""The command line: parses, calls the API, prints."""

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from exporter import __version__
from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import ExporterError
from exporter.formats import ALL_FORMATS, FORMAT_NAMES
from exporter.recipe import OPSETS, Recipe, parse_rank

EXIT_INTERRUPTED = 130

_EXIT_CODES = """\
exit codes:
  0    all artifacts were written and passed
  1    a verdict failed; what did not pass is in rejected/
  2    wrong usage or bad input; nothing was written
  3    a conversion failed
  130  interrupted; nothing was written
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the name of the program; by default those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    # Whoever stops a service sends SIGTERM; it must clean up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _library_output(shown=options.verbose):
        try:
            return _run(options)
        except ExporterError as error:
            print(f"exporter: error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("exporter: interrupted, nothing was written", file=sys.stderr)
            return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    recipe = Recipe(
        model=options.model,
        data=options.data,
        rank=parse_rank(options.rank),
        formats=tuple(options.format or Recipe.formats),
        output=options.output,
        atol=options.atol,
        rtol=options.rtol,
        seed=options.seed,
        merge=options.merge,
        opset=options.opset,
        force=options.force,
    )
    # Imported late: --help and usage errors need none of it.
    from rich.console import Console

    from exporter.pipeline import run
    from exporter.progress import Silent
    from exporter.report.console import WIDTH, ConsoleProgress, print_report
    from exporter.report.manifest import report_dict

    progress = Silent() if options.quiet else ConsoleProgress(Console(stderr=True, highlight=False))
    # Keras prints when it downloads; standard output is for the report.
    with redirect_stdout(sys.stderr if options.verbose else io.StringIO()):
        report = run(recipe, progress=progress)
    if options.json:
        print(json.dumps(report_dict(report), indent=2))
    elif not options.quiet:
        width = None if sys.stdout.isatty() else WIDTH
        print_report(report, Console(highlight=False, width=width))
    return report.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exporter",
        description=(
            "Compresses a trained Keras model by low-rank factorization, exports it, and checks "
            "that every artifact predicts what TensorFlow predicts."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a .keras or .h5 file; without it, the reference MLP is trained on the data",
    )
    parser.add_argument(
        "--rank",
        default="20",
        help="rank of the factors: a number, 'full', or 'layer=rank,layer=rank' (default: 20)",
    )
    parser.add_argument(
        "--format",
        action="extend",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="FORMAT",
        help=(
            f"{', '.join(FORMAT_NAMES)} or {ALL_FORMATS}; may be repeated, or separated by commas "
            "(default: tflite)"
        ),
    )
    parser.add_argument(
        "--data",
        default=DIGITS,
        help=(
            f"{DIGITS} (embedded), {NO_DATA}, an .npz or .npy file, or {', '.join(KERAS_DATASETS)} "
            f"(default: {DIGITS})"
        ),
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: artifacts/<model>-rank<rank>)"
    )
    parser.add_argument(
        "--atol",
        type=float,
        help="absolute tolerance (default: derived from the model's own rounding error)",
    )
    parser.add_argument("--rtol", type=float, help="relative tolerance, likewise")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and random inputs")
    parser.add_argument(
        "--no-merge",
        dest="merge",
        action="store_false",
        help="keep S as a layer of its own between U and V, for study",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=Recipe.opset,
        help=f"ONNX operator set, {OPSETS.start} to {OPSETS.stop - 1} (default: {Recipe.opset})",
    )
    parser.add_argument("--force", action="store_true", help="replace a former run in the output")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what TensorFlow and the runtimes log"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


@contextmanager
def _library_output(*, shown: bool) -> Iterator[None]:
    """Keeps the chatter of libraries off the terminal, unless it is to be shown.

    TensorFlow's native code writes to file descriptor 2 whatever its log level, so the descriptor
    leads nowhere meanwhile; ``sys.stderr`` writes to a duplicate.
    """
    if shown:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logging.disable()
    warnings.simplefilter("ignore")
    ours = sys.stderr
    ours.flush()
    duplicate = os.dup(2)
    with (
        Path(os.devnull).open("w") as nowhere,
        os.fdopen(duplicate, "w", 1, encoding=ours.encoding, errors=ours.errors) as stderr,
    ):
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = stderr
        try:
            yield
        finally:
            stderr.flush()
            os.dup2(duplicate, 2)
            sys.stderr = ours
