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

from exporter.arguments import INSPECT, TUNING, inspect_parser, run_parser
from exporter.errors import ExporterError
from exporter.formats import ALL, FORMATS
from exporter.lowrank.ranks.rank import parse_rank
from exporter.recipe.quantities import parse_bytes, parse_count, parse_part, parse_seconds
from exporter.recipe.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.progress import Progress

EXIT_INTERRUPTED = 130

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the name of the program; by default those of the process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    inspects = arguments[:1] == [INSPECT]
    parser = inspect_parser() if inspects else run_parser()
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
        labels=options.labels,
        description=options.description,
        merge=options.merge,
        force=options.force,
        **{name: getattr(options, name) for name in TUNING},
        **_shared(options),
    )
    # Imported late: --help and usage errors need none of it.
    from exporter.commands.run import run, run_worker
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
            if fmt.extra.missing:
                extra = fmt.extra.name
                progress.note(f"Format {fmt.name} is left out: it needs the extra {extra!r}")
    with _output_for(options):
        report = run(recipe, progress=progress)
    _show(options, report, report_dict, print_report)
    return report.exit_code


def _inspect(options: argparse.Namespace) -> int:
    recipe = Recipe(**_shared(options))
    from exporter.commands.inspect import inspect_recipe, inspection_dict
    from exporter.report.inspection import print_inspection

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
