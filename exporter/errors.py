"""Every error that ``exporter`` raises on purpose.

::

    ExporterError                    exit code
    ├── InputError                       2       an option or an input cannot be used
    │   ├── RecipeError                          an option is wrong
    │   ├── ModelError                           the model cannot be read or handled
    │   ├── DataError                            the data cannot be read or do not fit the model
    │   ├── PluginError                          what another package adds cannot be used
    │   └── OutputError                          the output folder cannot be written
    │       └── DiskError                        a disk is full
    ├── ConversionError                  3       a converter failed on this model
    ├── ClusterError                     4       a worker was lost; the run can be resumed
    └── TrackingError                    5       MLflow did not take a run, which is there

Errors of third-party libraries are wrapped in one of these, with ``from``. A verdict that
fails is a result and no error: it is found in the report, and the command line exits with 1.
"""

import re
from collections.abc import Collection
from difflib import SequenceMatcher
from itertools import dropwhile
from typing import ClassVar

_TERMINAL_STYLE = re.compile(r"\x1b\[[\d;]*m")
_SOURCE = re.compile(r"/\S+\.py:\d+:\d+: (?=error: )")  # Where the converter was called.

_OPERATION = re.compile(r"\{\{\w+_node .*?\}\} ?| ?\[Op:\w+\].*")
_ERROR_LINE = re.compile(r"\w+(Error|Exception): ")

_CLOSE = 0.6
"""Likeness of names from which on one is taken for the other, as in ``difflib``."""


class ExporterError(Exception):
    """Base of all errors raised by ``exporter``."""

    exit_code: ClassVar[int] = 2
    """The exit code of a command that this error ends."""


class InputError(ExporterError):
    """An option or an input cannot be used."""


class RecipeError(InputError):
    """An option is wrong, or wrong for this model."""


class ModelError(InputError):
    """The model cannot be read or handled."""


class DataError(InputError):
    """The data cannot be read, or do not fit the model."""


class PluginError(InputError):
    """What another installed package adds to this one cannot be used."""


class OutputError(InputError):
    """The output folder cannot be written, or holds files that must not be lost."""


class DiskError(OutputError):
    """A disk is full: that of the output, of the cache or of temporary files."""


class ConversionError(ExporterError):
    """A converter failed on this model."""

    exit_code = 3


class ClusterError(ExporterError):
    """A worker of a cluster was lost; the run can be resumed from its checkpoint."""

    exit_code = 4


class TrackingError(ExporterError):
    """MLflow did not take a run, whose files are there."""

    exit_code = 5


class Terminated(BaseException):
    """The process was told to end, by SIGTERM or SIGHUP; raised by the command line alone.

    It is no ``KeyboardInterrupt``, which fine-tuning takes for the wish to go on with the best.
    """


def brief(error: BaseException, limit: int = 300) -> str:
    """Returns the first informative line of a library's error as a sentence, cut at a limit."""
    plain = _OPERATION.sub("", _TERMINAL_STYLE.sub("", str(error)))  # TensorFlow's own names.
    plain = _SOURCE.sub(" ", plain)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if lines[:1] == ["in user code:"]:  # TensorFlow, with a traceback in the message.
        lines = list(dropwhile(lambda line: not _ERROR_LINE.match(line), lines)) or lines
    if len(lines) > 1 and "Exception encountered when calling" in lines[0]:  # Keras.
        del lines[0]
    text = lines[0] if lines else type(error).__name__
    text += "" if text.endswith((".", "!", "?")) else "."
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(received: object, known: Collection[str]) -> str:
    """Returns the end of a message about a name that is not known, or about several.

    It begins with a space, and is empty if nothing that is known is close.
    """
    names = received if isinstance(received, (list, tuple)) else [received]
    close: dict[str, None] = {}
    for name in (name for name in names if isinstance(name, str)):
        likeness = {other: _likeness(name, other) for other in known}
        best = max(likeness, key=lambda other: likeness[other], default="")
        if best and likeness[best] >= _CLOSE:
            close[repr(best)] = None
    return f" Did you mean {', '.join(close)}?" if close else ""


def _likeness(name: str, other: str) -> float:
    """Compares names, 0 to 1, whatever their case, their dashes and the order of their words."""
    words = [each.lower().strip("-").replace("-", "_").split("_") for each in (name, other)]
    pairs = (words, [sorted(each) for each in words])
    return max(SequenceMatcher(None, "_".join(a), "_".join(b)).ratio() for a, b in pairs)


def root_cause(error: BaseException) -> str:
    """Returns, whole, what Keras wraps in other errors, which repeat whole configurations."""
    text = _TERMINAL_STYLE.sub("", str(error)).rpartition("Exception encountered: ")[2]
    cause = " ".join(text.partition("\n\n")[0].split()) or type(error).__name__
    return cause if cause.endswith((".", "!", "?")) else f"{cause}."
