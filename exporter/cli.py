"""The command line: parses, calls the API, prints."""

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter import __version__
from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import ExporterError
from exporter.formats import ALL, FORMAT_NAMES, FORMATS
from exporter.quantities import parse_bytes, parse_count, parse_part, parse_seconds
from exporter.recipe import (
    CONVOLUTIONS,
    DEFAULT_RANK,
    DISTRIBUTIONS,
    EXPORTS_FROM,
    GRANULARITIES,
    IO_TYPES,
    METHODS,
    OPSETS,
    QUANTIZATIONS,
    RANGES,
    RANK_NAMES,
    TRAININGS,
    Recipe,
    parse_rank,
)

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.progress import Progress

EXIT_INTERRUPTED = 130
INSPECT = "inspect"

T = TypeVar("T")

_EXIT_CODES = """\
exit codes:
  0    all artifacts were written and passed
  1    a verdict failed; what did not pass is in rejected/
  2    wrong usage or bad input; nothing was written
  3    a conversion failed
  4    a worker of a cluster was lost; --resume goes on
  130  interrupted; nothing was written
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the name of the program; by default those of the process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    inspects = arguments[:1] == [INSPECT]
    parser = _inspect_parser() if inspects else _parser()
    options = parser.parse_args(arguments[1:] if inspects else arguments)
    # Whoever stops a service sends SIGTERM; it must clean up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _library_output(shown=options.verbose):
        try:
            return _inspect(options) if inspects else _run(options)
        except ExporterError as error:
            print(f"exporter: error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("exporter: interrupted, nothing was written", file=sys.stderr)
            return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    def parsed(parse: Callable[[str], T], text: str | None) -> T | None:
        return None if text is None else parse(text)

    recipe = Recipe(
        rank=parsed(parse_rank, options.rank),
        energy=parsed(parse_part, options.energy),
        max_params=parsed(parse_count, options.max_params),
        max_macs=parsed(parse_count, options.max_macs),
        max_size=parsed(parse_bytes, options.max_size),
        max_latency=parsed(parse_seconds, options.max_latency),
        max_drop=parsed(parse_part, options.max_drop),
        formats=tuple(options.format or Recipe.formats),
        quantize=tuple(options.quantize or Recipe.quantize),
        io_type=options.io_type,
        granularity=options.granularity,
        ranges=options.ranges,
        gauge=options.gauge,
        output=options.output,
        atol=options.atol,
        rtol=options.rtol,
        opset=options.opset,
        merge=options.merge,
        force=options.force,
        **{name: getattr(options, name) for name in _TUNING},
        **_shared(options),
    )
    # Imported late: --help and usage errors need none of it.
    from exporter.pipeline import run, run_worker
    from exporter.report.console import print_report
    from exporter.report.manifest import report_dict
    from exporter.training.distribution import worker_index

    if recipe.distribute == "multiworker" and worker_index() > 0:
        with _output_for(options):
            run_worker(recipe, progress=_progress(options))
        return 0
    progress = _progress(options)
    if ALL in (options.format or ()):
        for fmt in FORMATS.values():
            if fmt.missing:
                progress.note(f"Format {fmt.name} is left out: it needs the extra {fmt.extra!r}")
    with _output_for(options):
        report = run(recipe, progress=progress)
    _show(options, report, report_dict, print_report)
    return report.exit_code


def _inspect(options: argparse.Namespace) -> int:
    recipe = Recipe(**_shared(options))
    from exporter.inspection import inspection_dict
    from exporter.pipeline import inspect_recipe
    from exporter.report.console import print_inspection

    with _output_for(options):
        inspection = inspect_recipe(recipe, progress=_progress(options))
    _show(options, inspection, inspection_dict, print_inspection)
    return 0


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that all commands know."""
    names = ("model", "data", "seed", "method", "cascade", "calibration", "convolution", "fold")
    return {name: getattr(options, name) for name in names}


def _progress(options: argparse.Namespace) -> "Progress":
    from rich.console import Console

    from exporter.progress import Silent
    from exporter.report.console import ConsoleProgress

    return Silent() if options.quiet else ConsoleProgress(Console(stderr=True, highlight=False))


def _output_for(options: argparse.Namespace) -> AbstractContextManager[Any]:
    # Keras prints when it downloads; standard output is for the report.
    return redirect_stdout(sys.stderr if options.verbose else io.StringIO())


def _show(
    options: argparse.Namespace,
    result: T,
    as_dict: Callable[[T], dict[str, Any]],
    print_to: "Callable[[T, Console], None]",
) -> None:
    if options.json:
        print(json.dumps(as_dict(result), indent=2))
    elif not options.quiet:
        from rich.console import Console

        from exporter.report.console import WIDTH

        width = None if sys.stdout.isatty() else WIDTH
        print_to(result, Console(highlight=False, width=width))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exporter",
        description=(
            "Compresses a trained Keras model by low-rank factorization, exports it, and checks "
            "that every artifact predicts what TensorFlow predicts. 'exporter inspect MODEL' shows "
            "what there is to gain, without exporting."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_model(parser)
    ranks = parser.add_argument_group("ranks, chosen by one of these")
    ranks.add_argument(
        "--rank",
        help=(
            "one rank for all layers, a part of each layer's parameters such as 0.25, "
            f"{', '.join(RANK_NAMES)}, or 'layer=rank,layer=rank' (default: {DEFAULT_RANK})"
        ),
    )
    ranks.add_argument("--energy", metavar="PART", help="energy that each layer keeps, e.g. 0.99")
    ranks.add_argument("--max-params", metavar="N", help="parameters of the model, e.g. 200k")
    ranks.add_argument("--max-macs", metavar="N", help="multiply-accumulates, e.g. 1.5M")
    ranks.add_argument("--max-size", metavar="SIZE", help="bytes of each artifact, e.g. 250KB")
    ranks.add_argument(
        "--max-latency", metavar="TIME", help="of one call in each runtime, measured, e.g. 50us"
    )
    ranks.add_argument(
        "--max-drop", metavar="PART", help="accuracy lost on validation data, e.g. 0.5%%"
    )
    _add_cutting(parser)
    _add_tuning(parser)
    _add_quantization(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        action="extend",
        type=_names,
        metavar="FORMAT",
        help=(
            f"{', '.join(FORMAT_NAMES)} or {ALL} that are installed; may be repeated, or separated "
            "by commas (default: tflite)"
        ),
    )
    output.add_argument(
        "--output",
        metavar="DIR",
        help="folder to write to (default: artifacts/<model>-rank<rank>)",
    )
    output.add_argument("--force", action="store_true", help="replace a former run in the output")
    output.add_argument(
        "--opset",
        type=int,
        default=Recipe.opset,
        help=f"ONNX operator set, {OPSETS.start} to {OPSETS.stop - 1} (default: {Recipe.opset})",
    )
    output.add_argument(
        "--atol",
        type=float,
        help="absolute tolerance (default: derived from the model's own rounding error)",
    )
    output.add_argument("--rtol", type=float, help="relative tolerance, likewise")
    _add_printing(parser)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--quantize",
        action="extend",
        type=_names,
        metavar="VARIANT",
        help=(
            f"{', '.join(QUANTIZATIONS)} or {ALL}; may be repeated, or separated by commas; each "
            f"format exports those that it has (default: {Recipe.quantize[0]})"
        ),
    )
    group.add_argument(
        "--io-type",
        choices=IO_TYPES,
        default=Recipe.io_type,
        help=f"of what int8 takes and gives (default: {Recipe.io_type})",
    )
    group.add_argument(
        "--granularity",
        choices=GRANULARITIES,
        default=Recipe.granularity,
        help=(
            "scales of weights, one a tensor or one a channel; auto: measures both "
            f"(default: {Recipe.granularity})"
        ),
    )
    group.add_argument(
        "--ranges",
        choices=RANGES,
        default=Recipe.ranges,
        help=f"how ranges of activations are estimated (default: {Recipe.ranges})",
    )
    group.add_argument(
        "--no-gauge",
        dest="gauge",
        action="store_false",
        help="quantize factors as they are, not in the coordinates that cost least",
    )


def _inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"exporter {INSPECT}",
        description=(
            "Shows the layers of a model, their spectra, and what each way of choosing ranks would "
            "do. Writes nothing but the cached reference MLP, where no model is given."
        ),
    )
    _add_model(parser)
    _add_cutting(parser)
    _add_printing(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a .keras or .h5 file; without it, the reference MLP is trained on the data",
    )
    parser.add_argument(
        "--data",
        default=DIGITS,
        help=(
            f"{DIGITS} (embedded), {NO_DATA}, an .npz or .npy file, a folder of images by class, "
            f"or {', '.join(KERAS_DATASETS)} (default: {DIGITS})"
        ),
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")


def _add_cutting(parser: argparse.ArgumentParser) -> None:
    cutting = parser.add_argument_group("how kernels are cut")
    cutting.add_argument(
        "--method",
        choices=METHODS,
        help=(
            "svd: by the weights; whitened: by calibration data; kfac: by these and the loss "
            "gradient (default: kfac with training data, svd without)"
        ),
    )
    cutting.add_argument(
        "--no-cascade",
        dest="cascade",
        action="store_false",
        help="do not let later layers make up for the errors of earlier ones",
    )
    cutting.add_argument(
        "--calibration",
        type=int,
        metavar="N",
        default=Recipe.calibration,
        help=f"training samples that are looked at (default: {Recipe.calibration})",
    )
    cutting.add_argument(
        "--convolution",
        choices=CONVOLUTIONS,
        default=Recipe.convolution,
        help=(
            "channel: k x k then 1 x 1; spatial: k x 1 then 1 x k; tucker2: 1 x 1, k x k, 1 x 1 "
            f"(default: {Recipe.convolution})"
        ),
    )
    cutting.add_argument(
        "--no-fold",
        dest="fold",
        action="store_false",
        help="leave batch normalisations as layers of their own",
    )
    cutting.add_argument(
        "--no-merge",
        dest="merge",
        action="store_false",
        help="keep S as a layer of its own between U and V, for study",
    )


_TUNING = (
    "finetune",
    "train",
    "export_from",
    "batch_size",
    "learning_rate",
    "distill",
    "temperature",
    "decay",
    "pull",
    "patience",
    "resume",
    "distribute",
)


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    tuning = parser.add_argument_group("fine-tuning")

    def add(flag: str, help_text: str, **options: Any) -> None:
        default = getattr(Recipe, flag[2:].replace("-", "_"))
        tuning.add_argument(
            flag, default=default, help=f"{help_text} (default: {default})", **options
        )

    add("--finetune", "epochs at the most, of each phase", type=int, metavar="N")
    add(
        "--train",
        "factored: the factors; projected: full weights at their truncation; or one after the "
        "other",
        choices=TRAININGS,
    )
    add("--export-from", "what projected training hands on", choices=EXPORTS_FROM)
    add("--batch-size", "samples in a step, of all devices together", type=int, metavar="N")
    add("--learning-rate", "of Adam, at its peak", type=float, metavar="RATE")
    add("--distill", "weight of the divergence from the baseline, 0 to 1", type=float, metavar="W")
    add("--temperature", "that predictions are compared at", type=float, metavar="T")
    add("--decay", "weight of the norm of each product of factors", type=float, metavar="W")
    add("--pull", "draws full weights to their truncation", type=float, metavar="MU")
    add("--patience", "epochs without gain after which it stops; 0: never", type=int, metavar="N")
    tuning.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint of a run that was killed"
    )
    add(
        "--distribute",
        "mirrored: on all devices here; multiworker: on those that TF_CONFIG names",
        choices=DISTRIBUTIONS,
    )


def _add_printing(parser: argparse.ArgumentParser) -> None:
    printing = parser.add_argument_group("printing")
    printing.add_argument("--json", action="store_true", help="print the report as JSON")
    printing.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    printing.add_argument(
        "-v", "--verbose", action="store_true", help="show what TensorFlow and the runtimes log"
    )


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
