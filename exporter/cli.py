"""The command line: parses, calls the API, prints."""

import argparse
import codecs
import io
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exporter import plugins
from exporter.arguments import completion, given, parse
from exporter.datasets import NO_DATA
from exporter.disk import disk_error, remove_abandoned, scratch_folder, temporary
from exporter.errors import ExporterError, InputError, OutputError, RecipeError, Terminated
from exporter.formats import FORMATS
from exporter.isolation import check_limits
from exporter.options.checks import Sweeping
from exporter.options.groups import ALL
from exporter.recipe import Recipe, recipe_schema
from exporter.recipes import recipe_text

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.progress import Progress

EXIT_INTERRUPTED = 130


_PLAIN = str.maketrans("×µ…─━▁▂▃▄▅▆▇█", "xu.--_.:-=+*#")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Writes characters that a terminal lacks by others that look like them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return lacking.encode("ascii", "replace").decode(), error.end


codecs.register_error("plain", _plain)


class Outcome(NamedTuple):
    """Result of a verb: its values in JSON, a function that prints it, and the exit code."""

    values: Any
    show: "Callable[[Console], None]"
    exit_code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process, and returns the exit code."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A terminal may lack a character.
            stream.reconfigure(errors="plain")
    words = sys.argv[1:] if arguments is None else arguments
    fail = partial(_fail, as_json="--json" in words)
    try:
        options = parse(words)
        check_limits()
        if options.verb != "doctor":  # It tells of plugins that cannot be used.
            plugins.check()
    except ExporterError as error:
        return fail(error)
    _handle_signals()
    remove_abandoned(temporary())
    with _library_output(shown=options.verbose):
        try:
            # Keras prints when it downloads; standard output is for the report.
            shown = sys.stderr if options.verbose else io.StringIO()
            with redirect_stdout(shown), _temporary_files():
                outcome = _VERBS[options.verb](given(options), _progress(options))
            _write(partial(_print, outcome, options))
            return outcome.exit_code
        except ExporterError as error:
            return fail(disk_error(error) or error)
        except OSError as error:
            full = disk_error(error)
            if full is None:
                raise
            return fail(full)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module in {"", "exporter"}:  # A fault of this package.
                raise
            return fail(
                InputError(
                    f"Python must find the module {module!r}, which is not installed. Run: "
                    f"{sys.executable} -m exporter doctor (it needs numpy and rich)."
                )
            )
        except (KeyboardInterrupt, Terminated):
            kept = "finished trials are kept" if options.verb == "sweep" else "nothing was written"
            print(f"exporter: interrupted, {kept}", file=sys.stderr)
            return EXIT_INTERRUPTED


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Has libraries make their temporary files in a folder that the next run removes, if need be.

    The environment stays as it is, for children are started anew when it changes.
    """
    former = tempfile.tempdir
    with scratch_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = former


def _handle_signals() -> None:
    # Whoever stops a service sends SIGTERM; it must clean up like Ctrl-C (which may be ignored).
    signal.signal(signal.SIGTERM, _terminate)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)  # nohup ignores it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _open_streams() -> None:
    """Gives the process streams that it was started without, or a file would get their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the smallest number that is free.
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _interrupt(*_: Any) -> None:
    _expect_complaints()
    raise KeyboardInterrupt


def _terminate(*_: Any) -> None:
    _expect_complaints()
    raise Terminated


def _hang_up(*_: Any) -> None:
    for stream in (sys.__stdout__, sys.__stderr__, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # No file, or none any more.
            number = stream.fileno()  # type: ignore[union-attr]
            try:
                os.write(number, b"")
            except OSError:  # The terminal is gone, and every write to it an error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    _terminate()


def _expect_complaints() -> None:
    # Objects of libraries that are not finished yet complain as they are deleted.
    sys.unraisablehook = lambda _: None


def _fail(error: ExporterError, *, as_json: bool) -> int:
    line = " ".join(str(error).splitlines())  # Names of files may have several lines.
    print(f"exporter: error: {line}", file=sys.stderr)
    if as_json:
        values = json.dumps({"error": line, "exit_code": error.exit_code})
        with suppress(OutputError):  # Standard error has told it.
            _write(lambda: print(values))
    return error.exit_code


def _run(choices: dict[str, Any], progress: "Progress") -> Outcome:
    dry = choices.pop("dry_run", False)
    recipe = Recipe(**choices)
    if dry:
        return _dry_run(recipe, progress)
    # Imported late, here and below: --help and usage errors need none of it.
    from exporter.commands.run import run, run_worker
    from exporter.report.console import print_report
    from exporter.report.manifest import report_dict
    from exporter.training.distribution import worker_index

    if recipe.tuning.distribute == "multiworker" and worker_index() > 0:
        run_worker(recipe, progress=progress)
        return Outcome(None, lambda console: None)
    if ALL in choices.get("formats", ()):
        for fmt in FORMATS.values():
            if fmt.extra.missing:
                extra = fmt.extra.name
                progress.note(f"Format {fmt.name} is left out: it needs the extra {extra!r}")
    report = run(recipe, progress=progress)
    return Outcome(report_dict(report), lambda c: print_report(report, c), report.exit_code)


def _dry_run(recipe: Recipe, progress: "Progress", *, exports: bool = True) -> Outcome:
    from exporter.commands.forecast import dry_run
    from exporter.report.forecast import print_forecast
    from exporter.report.manifest import plain

    forecast = dry_run(recipe, exports=exports, progress=progress)
    return Outcome(plain(forecast), lambda c: print_forecast(forecast, c), forecast.exit_code)


def _inspect(choices: dict[str, Any], progress: "Progress") -> Outcome:
    recipe = Recipe(**choices)
    from exporter.commands.inspect import inspect_recipe
    from exporter.report.inspection import print_inspection
    from exporter.report.manifest import plain

    inspection = inspect_recipe(recipe, progress=progress)
    return Outcome(plain(inspection), lambda c: print_inspection(inspection, c))


def _compress(choices: dict[str, Any], progress: "Progress") -> Outcome:
    dry = choices.pop("dry_run", False)
    recipe = Recipe(**choices)
    if dry:
        return _dry_run(recipe, progress, exports=False)
    from exporter.commands.compress import compress_recipe
    from exporter.report.console import print_compression
    from exporter.report.manifest import compression_dict

    report = compress_recipe(recipe, progress=progress)
    return Outcome(compression_dict(report), lambda c: print_compression(report, c))


def _export(choices: dict[str, Any], progress: "Progress") -> Outcome:
    recipe = Recipe(**choices)
    from exporter.commands.export import export_recipe
    from exporter.report.console import print_artifacts
    from exporter.report.manifest import plain

    artifacts = export_recipe(recipe, progress=progress)
    return Outcome(plain(artifacts), lambda c: print_artifacts(artifacts, c))


def _verify(choices: dict[str, Any], progress: "Progress") -> Outcome:
    artifact, against = choices.pop("artifact"), choices.pop("against", None)
    recipe = Recipe(**choices)
    from exporter.commands.verify import verify_recipe, verify_stored
    from exporter.report.manifest import verdict_dict
    from exporter.report.verdicts import print_verdicts

    if recipe.source.model is None:
        idle = sorted(set(choices) - {"data"})
        if idle or choices["data"] != NO_DATA:
            raise RecipeError(
                f"Without a Keras model, verify takes no {', '.join(idle) or 'data'}: the run "
                "stored what it needs. Give the model as well."
            )
        reports = verify_stored(artifact, against, progress=progress)
        values: Any = {
            report.label: report.conversion and verdict_dict(report.conversion)
            for report in reports
        }
    elif against is not None:
        raise RecipeError("verify takes a Keras model or --against a manifest, not both.")
    else:
        reports = [verify_recipe(artifact, recipe, progress=progress)]
        values = reports[0].conversion and verdict_dict(reports[0].conversion)
    code = int(not all(report.accepted for report in reports))
    return Outcome(values, lambda console: print_verdicts(reports, console), code)


def _benchmark(choices: dict[str, Any], progress: "Progress") -> Outcome:
    from exporter.commands.benchmark import benchmark
    from exporter.report.benchmark import benchmark_dict, print_benchmark

    found = benchmark(**choices, progress=progress)
    code = int(bool(found.failed))
    return Outcome(benchmark_dict(found), lambda console: print_benchmark(found, console), code)


def _sweep(choices: dict[str, Any], progress: "Progress") -> Outcome:
    dry = choices.pop("dry_run", False)
    own = {o.name: choices.pop(o.name) for o in Sweeping.options() if o.name in choices}
    recipe = Recipe(**choices)
    from exporter.commands.sweep import dry_sweep, sweep
    from exporter.report.manifest import plain
    from exporter.tradeoff.forecast import print_sweep_forecast
    from exporter.tradeoff.table import print_sweep

    if dry:
        told = dry_sweep(recipe, **own, progress=progress)
        values = plain(told) | {"seconds": told.seconds}
        return Outcome(values, lambda c: print_sweep_forecast(told, c), told.exit_code)
    found = sweep(recipe, **own, progress=progress)
    # Trials that close in on a limit fail where ranks and channels cannot keep it.
    failed = bool(found.failures) and own.get("best") is None
    code = int(found.chosen is None or failed)
    return Outcome(plain(found), lambda console: print_sweep(found, console), code)


def _compare(choices: dict[str, Any], progress: "Progress") -> Outcome:
    del progress  # It takes no time.
    from exporter.commands.compare import compare
    from exporter.report.comparison import comparison_dict, print_comparison

    found = compare(**choices)
    code = int(not found.passed)
    return Outcome(comparison_dict(found), lambda console: print_comparison(found, console), code)


def _recipe(choices: dict[str, Any], progress: "Progress") -> Outcome:
    del progress  # Nothing takes long.
    from rich.text import Text

    if choices.pop("schema", False):
        schema = recipe_schema(written=True)
        text = json.dumps(schema, indent=2)
        return Outcome(schema, lambda console: console.print(Text(text), soft_wrap=True))
    recipe = Recipe(**choices)
    text = recipe_text(recipe)
    return Outcome(
        recipe.to_dict(), lambda console: console.print(Text(text), soft_wrap=True, end="")
    )


def _completion(choices: dict[str, Any], progress: "Progress") -> Outcome:
    del progress  # Nothing takes long.
    from rich.text import Text

    script = completion(choices["shell"])
    return Outcome(
        {"script": script}, lambda console: console.print(Text(script), soft_wrap=True, end="")
    )


def _report(choices: dict[str, Any], progress: "Progress") -> Outcome:
    from exporter.commands.report import write_report
    from exporter.report.console import print_page

    page = write_report(choices["folder"], progress=progress)
    return Outcome({"page": str(page)}, lambda console: print_page(page, console))


def _doctor(choices: dict[str, Any], progress: "Progress") -> Outcome:
    del choices  # It has none.
    from exporter.commands.doctor import doctor
    from exporter.report.diagnosis import print_diagnosis
    from exporter.report.manifest import plain

    diagnosis = doctor(progress=progress)
    values = {"passed": diagnosis.passed, **plain(diagnosis)}
    code = int(not diagnosis.passed)
    return Outcome(values, lambda console: print_diagnosis(diagnosis, console), code)


_VERBS: "dict[str, Callable[[dict[str, Any], Progress], Outcome]]" = {
    "run": _run,
    "inspect": _inspect,
    "compress": _compress,
    "export": _export,
    "verify": _verify,
    "benchmark": _benchmark,
    "sweep": _sweep,
    "compare": _compare,
    "recipe": _recipe,
    "completion": _completion,
    "report": _report,
    "doctor": _doctor,
}


def _progress(options: argparse.Namespace) -> "Progress":
    from rich.console import Console

    from exporter.progress import Silent
    from exporter.report.progress import ConsoleProgress

    return Silent() if options.quiet else ConsoleProgress(Console(stderr=True, highlight=False))


def _print(outcome: Outcome, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(outcome.values, indent=2))
    elif not options.quiet:
        from rich.console import Console

        from exporter.report.tables import WIDTH

        width = None if sys.stdout.isatty() else WIDTH
        outcome.show(Console(highlight=False, width=width))


def _write(write: Callable[[], None]) -> None:
    """Calls a function that prints, and writes all that it printed.

    Raises:
        OutputError: If standard output cannot be written.
    """
    try:
        write()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Rich turns the one into the other.
        # Whoever reads, such as head, has seen enough. Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from error


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
