"""The arguments of the command line, and their help."""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from exporter.datasets import NO_DATA
from exporter.errors import RecipeError, did_you_mean
from exporter.formats import FORMATS
from exporter.options.checks import Comparison, Sweeping, Timing
from exporter.options.groups import Group, Option, Source
from exporter.recipe import GROUPS, quantizations
from exporter.version import __version__

_EXIT_CODES = """\
exit codes:
  0    all artifacts were written and passed
  1    a verdict failed; what did not pass is in rejected/
  2    wrong usage or bad input; nothing was written
  3    a conversion failed
  4    a worker of a cluster was lost; --resume goes on
  130  interrupted; nothing was written
"""

_EXIT_CODES_OF_BENCHMARK = """\
exit codes:
  0    all artifacts whose runtime is installed were timed
  1    a runtime could not run one
  2    wrong usage or bad input; nothing was timed
  130  interrupted
"""

_EXIT_CODES_OF_SWEEP = """\
exit codes:
  0    an artifact within the limits was found
  1    none is within the limits
  2    wrong usage or bad input
  4    a Ray cluster was lost; the same command goes on
  130  interrupted; finished trials are kept
"""

_EXIT_CODES_OF_COMPARE = """\
exit codes:
  0    the new run falls behind the old one in nothing
  1    it does, or an artifact is missing
  2    wrong usage or bad input
"""

_EXIT_CODES_OF_DOCTOR = """\
exit codes:
  0    all that is installed works
  1    something that is installed does not work, or its version does not fit
  2    wrong usage
  130  interrupted
"""


@dataclass(frozen=True)
class Verb:
    """What the program is asked to do.

    Attributes:
        uses: Names of the groups, and of single options, that it reads.
        positionals: Its arguments without a flag, with their help.
        defaults: Its own defaults, where they are not those of the options.
        files: Options of its own that take a path, with their help.
        own: Other options of its own.
        exit_codes: What its exit codes mean.
    """

    description: str
    uses: tuple[str, ...]
    positionals: tuple[tuple[str, str], ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    own: type[Group] | None = None
    exit_codes: str = _EXIT_CODES

    @property
    def options(self) -> dict[str, list[Option]]:
        """Options that it reads, except for the model, by the title of their group."""
        found = {
            group.title: [
                option._replace(default=self.defaults.get(option.name, option.default))
                for option in group.options()
                if {name, option.name} & set(self.uses) and option.name != "model"
            ]
            for name, group in GROUPS.items()
        }
        own = {self.own.title: list(self.own.options())} if self.own else {}
        return {title: options for title, options in (found | own).items() if options}


_MODEL = ("model", "a .keras or .h5 file")
_MODEL_OR_REFERENCE = ("model", next(o.help for o in Source.options() if o.name == "model"))

RUN = "run"

VERBS = {
    RUN: Verb(
        "Compresses a trained Keras model by low-rank factorization, exports it, and checks that "
        "every artifact predicts what TensorFlow predicts.",
        tuple(GROUPS),
        (_MODEL_OR_REFERENCE,),
    ),
    "inspect": Verb(
        "Shows the layers of a model, their spectra, and what each way of choosing ranks would do. "
        "Writes nothing but the cached reference MLP, where no model is given.",
        ("source", "cut"),
        (_MODEL_OR_REFERENCE,),
    ),
    "compress": Verb(
        "Factorizes a model, fine-tunes it if asked to, and saves it as a Keras model.",
        ("source", "goal", "cut", "tuning", "quantization", "formats", "output", "force"),
        (_MODEL_OR_REFERENCE,),
    ),
    "export": Verb(
        "Converts a model, compressed or not, as it is; 'verify' proves what came of it.",
        ("source", "quantization", "export"),
        (_MODEL,),
        {"data": NO_DATA},
    ),
    "verify": Verb(
        "Checks that an artifact predicts what the Keras model predicts that it was made from; or, "
        "without the model, that all artifacts of a run predict what it stored, with their "
        "runtimes alone.",
        ("source", "verification"),
        (
            ("artifact", "the file or folder that was exported, or the folder of a run"),
            ("model", "the Keras model; without it, the run's own predictions are taken"),
        ),
        {"data": NO_DATA},
        {"against": "manifest.json of the run that made it, with reference.npz beside it"},
    ),
    "benchmark": Verb(
        "Times artifacts in turns in their runtimes, whoever made them: load time, latency, "
        "memory. Tells which differences are no more than the noise of this machine.",
        ("size",),
        (("files", "files or folders that are artifacts, or the folders of runs"),),
        files={"csv": "file to write the table to, as CSV"},
        own=Timing,
        exit_codes=_EXIT_CODES_OF_BENCHMARK,
    ),
    "sweep": Verb(
        "Carries a run out at many ranks, each in a process of its own, and finds the artifacts "
        "that are worth choosing. Finished trials are not repeated.",
        tuple(name for name in GROUPS if name != "goal"),
        (_MODEL_OR_REFERENCE,),
        own=Sweeping,
        exit_codes=_EXIT_CODES_OF_SWEEP,
    ),
    "compare": Verb(
        "Tells whether a new run falls behind an old one, artifact by artifact: verdict, accuracy, "
        "size and, if asked to, latency. Reads their manifests alone.",
        (),
        (
            ("old", "the folder of a run, or its manifest.json"),
            ("new", "the folder or manifest of the run that is held against it"),
        ),
        own=Comparison,
        exit_codes=_EXIT_CODES_OF_COMPARE,
    ),
    "doctor": Verb(
        "Tells what works on this machine: versions of packages, formats, which are tried on a "
        "tiny model, targets, processor, memory and disks. Takes some ten seconds and writes "
        "nothing.",
        (),
        (),
        exit_codes=_EXIT_CODES_OF_DOCTOR,
    ),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments of the command line; options may stand before or after the verb.

    Returns:
        The options by name, those that were not given left out; ``verb``, and what is printed.
    """
    if "--" in arguments:  # What follows are files, though they begin with a dash.
        end = arguments.index("--")
        files = (f"./{a}" if a.startswith("-") else a for a in arguments[end + 1 :])
        arguments = [*arguments[:end], *files]
    words = _positionals(arguments)
    named = bool(words) and words[0] in VERBS
    verb = words[0] if named else RUN
    parser = _parser(verb, named=named)
    # Positional arguments may stand anywhere among the options.
    options, rest = parser.parse_known_intermixed_args(arguments)
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    mistyped = not flags and not named and words and "." not in words[0]  # No file of a model.
    if mistyped and (suggestion := did_you_mean(words[0], VERBS)):
        parser.error(f"{words[0]!r} is no verb.{suggestion}")
    if rest:
        suggestion = did_you_mean(flags, _flags(verb))
        parser.error(f"unrecognized arguments: {' '.join(rest)}{suggestion and '.'}{suggestion}")
    return argparse.Namespace(**{**VERBS[verb].defaults, **vars(options), "verb": verb})


def _flags(verb: str) -> list[str]:
    own = [option.flag for options in VERBS[verb].options.values() for option in options]
    own += [f"--{name}" for name in VERBS[verb].files]
    return [*own, "--help", "--version", "--json", "--quiet", "--verbose"]


def _positionals(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments that are no option, nor the value of one, of any verb."""
    parser = _Raising(add_help=False, allow_abbrev=False)
    groups = [*GROUPS.values(), *(verb.own for verb in VERBS.values() if verb.own)]
    flags = {o.flag: isinstance(o.default, bool) for group in groups for o in group.options()}
    for flag, switch in flags.items():
        parser.add_argument(flag, action="store_true" if switch else "store")
    for name in (name for verb in VERBS.values() for name in verb.files):
        parser.add_argument(f"--{name}")
    _add_printing(parser)
    parser.add_argument("words", nargs="*")
    try:
        words: list[str] = parser.parse_known_intermixed_args(arguments)[0].words
    except ValueError:  # The parser of the verb says it better.
        return [word for word in arguments if word in VERBS]
    return words


class _Raising(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(name: str, *, named: bool) -> argparse.ArgumentParser:
    verb = VERBS[name]
    others = "" if named else f" Other verbs: {', '.join(v for v in VERBS if v != RUN)}."
    parser = argparse.ArgumentParser(
        prog=f"exporter {name}" if named else "exporter",
        usage=" ".join(["%(prog)s", *(w.upper() for w, _ in verb.positionals), "[option ...]"]),
        description=textwrap.fill(verb.description + others, 79),
        epilog=f"{_variants()}\n{verb.exit_codes}"
        if {"export", "formats"} & set(verb.uses)
        else verb.exit_codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    if named:
        parser.add_argument("verb", help=argparse.SUPPRESS)
    left_out: Any = {"default": argparse.SUPPRESS}
    for word, told in verb.positionals:
        nargs = "?" if word == "model" and (word, told) != _MODEL else None
        nargs = "+" if word == "files" else nargs
        parser.add_argument(word, nargs=nargs, metavar=word.upper(), help=told, **left_out)
    for title, options in verb.options.items():
        group = parser.add_argument_group(title)
        for option in options:
            kind = {"dest": option.name, "help": _help(option), **option.value.parser, **left_out}
            if "type" in kind:
                kind["type"] = partial(_read, option.flag, kind["type"])
            group.add_argument(option.flag, **kind)
    for word, told in verb.files.items():
        parser.add_argument(f"--{word}", metavar="FILE", help=told, **left_out)
    _add_printing(parser)
    return parser


def _read(flag: str, reader: Callable[[str], Any], text: str) -> Any:
    """Reads the value of an option; its flag begins the message if that fails."""
    try:
        return reader(text)
    except RecipeError as error:
        raise RecipeError(f"{flag}: {error}") from error


def _help(option: Option) -> str:
    told = f"do not {option.help}" if option.default is True else option.full_help
    return told.replace("%", "%%")


def _add_printing(parser: argparse.ArgumentParser) -> None:
    printing = parser.add_argument_group("printing")
    printing.add_argument("--json", action="store_true", help="print the result as JSON")
    printing.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    printing.add_argument(
        "-v", "--verbose", action="store_true", help="show what TensorFlow and the runtimes log"
    )


def _variants() -> str:
    rows = (f"  {name:<12} {', '.join(quantizations(name))}" for name in FORMATS)
    return "\n".join(["formats, and the variants of each:", *rows]) + "\n"


def given(options: argparse.Namespace) -> dict[str, object]:
    """Returns what a verb was given, by name; what the program itself reads is left out."""
    printing = {"verb", "json", "quiet", "verbose"}
    return {name: value for name, value in vars(options).items() if name not in printing}
