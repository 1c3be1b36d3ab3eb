"""The arguments of the command line, and their help."""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from exporter import plugins
from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import RecipeError, did_you_mean
from exporter.formats import FORMATS
from exporter.formats.extras import COMPLETION
from exporter.inputs import checked_path
from exporter.options.checks import Comparison, Sweeping, Timing
from exporter.options.groups import ALL, Group, Option, Source
from exporter.recipe import GROUP_OF, GROUPS, QUANTIZATIONS, quantizations
from exporter.recipes import READY, read_recipe
from exporter.version import __version__

_EXIT_CODES = """\
exit codes:
  0    all artifacts were written and passed
  1    a verdict failed; what did not pass is in rejected/
  2    wrong usage or bad input; nothing was written
  3    a conversion failed
  4    a worker of a cluster was lost; --resume goes on
  5    all passed, but MLflow did not take the run; the files are there
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
  0    all trials ended, and an artifact within the limits was found
  1    a trial failed, or no artifact is within the limits
  2    wrong usage or bad input
  4    a Ray cluster was lost; the same command goes on
  5    MLflow did not take the sweep; the same command logs it
  130  interrupted; finished trials are kept
"""

_EXIT_CODES_OF_COMPARE = """\
exit codes:
  0    the new run falls behind the old one in nothing
  1    it does, or an artifact is missing
  2    wrong usage or bad input
"""

_EXIT_CODES_OF_RECIPE = """\
exit codes:
  0    printed
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
        switches: Options of its own that take nothing, with their help.
        examples: Lines of a shell, each with what it does.
        exit_codes: What its exit codes mean.
    """

    description: str
    uses: tuple[str, ...]
    positionals: tuple[tuple[str, str], ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    own: type[Group] | None = None
    switches: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[tuple[str, str], ...] = ()
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

_RECIPE_HELP = (
    f"a file of options in YAML, JSON or TOML, or one of {', '.join(READY)}; other options replace "
    "those in it"
)
_RECIPE = {"recipe": _RECIPE_HELP}
_DRY_RUN = {"dry-run": "check all input, and tell plan, sizes, time and memory; write nothing"}

RUN = "run"

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")

_COMPLETED = {
    "formats": (*FORMATS, ALL),
    "quantize": (*QUANTIZATIONS, ALL),
    "data": (DIGITS, NO_DATA, *KERAS_DATASETS),
    "recipe": tuple(READY),
    "shell": SHELLS,
}
"""Names that shells complete beside those that the parser knows itself."""

_FILES = {
    *("MODEL", "ARTIFACT", "RECIPE", "FILES", "FOLDER", "OLD", "NEW"),
    *("FILE", "DIR", "DATA", "FILE.py|MODULE"),
}
"""What stands in the help for a path."""

VERBS = {
    RUN: Verb(
        "Compresses a trained Keras model by low-rank factorization, exports it, and checks that "
        "every artifact predicts what TensorFlow predicts.",
        tuple(GROUPS),
        (_MODEL_OR_REFERENCE,),
        files=_RECIPE,
        switches=_DRY_RUN,
        examples=(
            ("exporter my.keras --data my.npz --dry-run", "what it would do"),
            ("exporter my.keras --data my.npz --max-params 25%", "a quarter of the size"),
            ("exporter my.keras --data my.npz --recipe phone", "what suits phones"),
            ("exporter my.keras --rank none --quantize int8", "integers alone"),
        ),
    ),
    "inspect": Verb(
        "Shows the layers of a model, their spectra, and what each way of choosing ranks would do. "
        "Writes nothing but the cached reference MLP, where no model is given.",
        ("source", "cut"),
        (_MODEL_OR_REFERENCE,),
        files=_RECIPE,
        examples=(("exporter inspect my.keras --data my.npz", "spectra of layers' outputs"),),
    ),
    "compress": Verb(
        "Factorizes a model, fine-tunes it if asked to, and saves it as a Keras model.",
        ("source", "goal", "cut", "tuning", "quantization", "formats", "output", "force"),
        (_MODEL_OR_REFERENCE,),
        files=_RECIPE,
        switches=_DRY_RUN,
        examples=(
            ("exporter compress my.keras --data my.npz --rank 0.25", "saves compressed.keras"),
        ),
    ),
    "export": Verb(
        "Converts a model, compressed or not, as it is; 'verify' proves what came of it.",
        (
            *("source", "quantization", "formats", "output", "force"),
            *("batch", "opset", "labels", "description"),
        ),
        (_MODEL,),
        {"data": NO_DATA},
        _RECIPE,
        examples=(("exporter export my.keras --format tflite,onnx", "as it is, in both formats"),),
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
        examples=(
            ("exporter verify artifacts/my-rank20", "a run again, by its runtimes alone"),
            ("exporter verify model.tflite my.keras --data my.npz", "one file, by its model"),
        ),
    ),
    "recipe": Verb(
        "Prints a recipe with all its options, to be saved as a file and edited; without one, the "
        "defaults. Runs nothing and writes nothing.",
        tuple(GROUPS),
        (("recipe", _RECIPE_HELP), ("model", _MODEL[1])),
        switches={"schema": "print the JSON schema of such files instead, for editors"},
        examples=(
            ("exporter recipe phone my.keras --data my.npz > my.yaml", "a file to edit"),
            ("exporter my.keras --recipe my.yaml", "runs it"),
        ),
        exit_codes=_EXIT_CODES_OF_RECIPE,
    ),
    "benchmark": Verb(
        "Times artifacts in turns in their runtimes, whoever made them: load time, latency, "
        "memory. Tells which differences are no more than the noise of this machine.",
        ("size",),
        (("files", "files or folders that are artifacts, or the folders of runs"),),
        files={"csv": "file to write the table to, as CSV"},
        own=Timing,
        examples=(("exporter benchmark a.tflite b.onnx --threads 1,2", "which is faster here"),),
        exit_codes=_EXIT_CODES_OF_BENCHMARK,
    ),
    "sweep": Verb(
        "Carries a run out at many ranks, each in a process of its own, and finds the artifacts "
        "that are worth choosing. Finished trials are not repeated.",
        tuple(name for name in GROUPS if name != "goal"),
        (_MODEL_OR_REFERENCE,),
        files=_RECIPE,
        own=Sweeping,
        switches={"dry-run": "tell the trials, and how long they may take; write nothing"},
        examples=(
            ("exporter sweep my.keras --data my.npz --quantize none,int8", "ranks 4 to 64"),
            ("exporter sweep my.keras --data my.npz --search 20 --max-drop 1%", "the smallest"),
        ),
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
        examples=(("exporter compare stored/manifest.json artifacts/my-rank20", "in CI"),),
        exit_codes=_EXIT_CODES_OF_COMPARE,
    ),
    "completion": Verb(
        "Prints a script by which a shell completes verbs, options and their values. Needs the "
        "extra completion.",
        (),
        (("shell", ", ".join(SHELLS)),),
        examples=(
            ('eval "$(exporter completion bash)"', "in ~/.bashrc"),
            ("exporter completion zsh > ~/.zfunc/_exporter", "in a folder of $fpath"),
        ),
        exit_codes=_EXIT_CODES_OF_RECIPE,
    ),
    "report": Verb(
        "Draws report.html and report.md of a finished run anew, from what the run wrote.",
        (),
        (("folder", "the folder of a run"),),
        examples=(("exporter report artifacts/my-rank20", "a finished run's"),),
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

    Raises:
        RecipeError: If they are not what the verb takes.
        SystemExit: After the help or the version.
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
    if mistyped and not Path(checked_path(words[0])).exists():
        parser.error(f"{words[0]!r} is no verb and no file. Verbs: {', '.join(VERBS)}.")
    if rest:
        suggestion = did_you_mean(flags, _flags(verb))
        parser.error(f"unrecognized arguments: {' '.join(rest)}{suggestion and '.'}{suggestion}")
    chosen = _chosen(verb, vars(options))
    if VERBS[verb].positionals == (_MODEL,) and chosen.get("model") is None:
        parser.error("the following arguments are required: MODEL")
    return argparse.Namespace(**{**VERBS[verb].defaults, **chosen, "verb": verb})


def _chosen(verb: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns options, and of those in their recipe what the verb uses and they do not replace."""
    source, used = options.pop("recipe", None), {*VERBS[verb].uses}
    if source is None:
        return options
    choices = {name: value for name, value in options.items() if name in GROUP_OF}
    merged = read_recipe(source).choices(choices)
    return options | {n: v for n, v in merged.items() if {n, GROUP_OF[n]} & used}


def _flags(verb: str) -> list[str]:
    own = [option.flag for options in VERBS[verb].options.values() for option in options]
    own += [f"--{name}" for name in (*VERBS[verb].files, *VERBS[verb].switches)]
    return [*own, "--help", "--version", "--json", "--quiet", "--verbose"]


def _positionals(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments that are no option, nor the value of one, of any verb."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    groups = [*GROUPS.values(), *(verb.own for verb in VERBS.values() if verb.own)]
    options = {
        way: option for group in groups for option in group.options() for way in _ways(option)
    }
    for way, option in options.items():
        switch = isinstance(option.default, bool)
        parser.add_argument(way, action="store_true" if switch else "store")
    for name in {name for verb in VERBS.values() for name in verb.files}:
        parser.add_argument(f"--{name}")
    for name in {name for verb in VERBS.values() for name in verb.switches}:
        parser.add_argument(f"--{name}", action="store_true")
    _add_printing(parser)
    parser.add_argument("words", nargs="*")
    try:
        words: list[str] = parser.parse_known_intermixed_args(arguments)[0].words
    except RecipeError:  # The parser of the verb says it better.
        return [word for word in arguments if word in VERBS]
    return words


def _ways(option: Option) -> list[str]:
    """Returns the flag of an option, and of a switch the one that undoes it."""
    if not isinstance(option.default, bool):
        return [option.flag]
    name = (option.flag_name or option.name).replace("_", "-")
    return [option.flag, f"--{name}" if option.default else f"--no-{name}"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?")) else "."
        raise RecipeError(f"{message}{end} See: {self.prog} --help")


def completion(shell: str) -> str:
    """Returns a script by which a shell completes the command line.

    Raises:
        RecipeError: If the shell is none that is known, or the extra is not installed.
    """
    if shell not in SHELLS:
        raise RecipeError(
            f"The shell must be one of {', '.join(SHELLS)}. Received: {shell!r}."
            f"{did_you_mean(shell, SHELLS)}"
        )
    COMPLETION.require("The completion of shells")
    import shtab

    parsers = {name: _parser(name, named=False) for name in VERBS}
    made: Any = {"parser_class": lambda prog, **_: parsers[prog.split()[-1]]}
    root = _parser(RUN, named=False, words=False)
    for parser in (root, *parsers.values()):
        for action in parser._actions:
            names = _COMPLETED.get(action.dest, ())
            files = [shtab.Choice("file")] * (action.metavar in _FILES)
            action.choices = action.choices or [*names, *files] or None
    verbs = root.add_subparsers(**made)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.description)
    text: str = shtab.complete(root, shell)
    # Without a verb, the first word is a model: bash is to complete files as well.
    return text.replace("\ncomplete -o bashdefault ", "\ncomplete -o bashdefault -o default ")


def _parser(name: str, *, named: bool, words: bool = True) -> argparse.ArgumentParser:
    verb = VERBS[name]
    others = "" if named else f" Other verbs: {', '.join(v for v in VERBS if v != RUN)}."
    parser = _Parser(
        prog=f"exporter {name}" if named else "exporter",
        usage=" ".join(["%(prog)s", *(w.upper() for w, _ in verb.positionals), "[option ...]"]),
        description=textwrap.fill(verb.description + others, 79),
        epilog="\n".join(filter(None, [_examples(verb), _variants(verb), verb.exit_codes])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    if named:
        parser.add_argument("verb", help=argparse.SUPPRESS)
    left_out: Any = {"default": argparse.SUPPRESS}
    for word, told in verb.positionals if words else ():
        # A recipe may name the model.
        nargs = {"model": "?", "recipe": "?", "files": "+"}.get(word)
        parser.add_argument(word, nargs=nargs, metavar=word.upper(), help=told, **left_out)
    for title, options in verb.options.items():
        group = parser.add_argument_group(title)
        for option in options:
            kind = {"dest": option.name, "help": _help(option), **option.value.parser, **left_out}
            if "type" in kind:
                kind["type"] = partial(_read, option.flag, kind["type"])
            group.add_argument(option.flag, **kind)
            for undo in _ways(option)[1:]:  # What a recipe has switched on.
                const = {
                    "action": "store_const",
                    "const": option.default,
                    "help": argparse.SUPPRESS,
                }
                group.add_argument(undo, dest=option.name, **const, **left_out)
    for word, told in verb.files.items():
        parser.add_argument(f"--{word}", metavar="FILE", help=told, **left_out)
    for word, told in verb.switches.items():
        parser.add_argument(f"--{word}", action="store_true", help=told, **left_out)
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


def _examples(verb: Verb) -> str:
    lines = (f"  {command}\n      {told}" for command, told in verb.examples)
    return "\n".join(["examples:", *lines]) + "\n" if verb.examples else ""


def _variants(verb: Verb) -> str:
    if not {"export", "formats"} & set(verb.uses):
        return ""
    rows = [f"  {name:<12} {', '.join(quantizations(name))}" for name in FORMATS]
    broken = dict.fromkeys(each.package for each in plugins.used() if each.fault)
    rows += [f"  what {package} adds cannot be used: exporter doctor" for package in broken]
    return "\n".join(["formats, and the variants of each:", *rows]) + "\n"


def given(options: argparse.Namespace) -> dict[str, object]:
    """Returns what a verb was given, by name; what the program itself reads is left out."""
    printing = {"verb", "json", "quiet", "verbose"}
    return {name: value for name, value in vars(options).items() if name not in printing}
