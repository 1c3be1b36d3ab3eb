"""Every error that ``exporter`` raises on purpose.

::

    ExporterError                    exit code
    ├── InputError                       2       what was asked for or given cannot be used
    │   ├── RecipeError                          an option is wrong
    │   ├── ModelError                           the model cannot be read or handled
    │   ├── DataError                            the data cannot be read or do not fit the model
    │   └── OutputError                          the output folder cannot be written
    └── ConversionError                  3       a converter failed on this model

Errors of third-party libraries are wrapped in one of these, with ``from``. A verdict that
fails is a result and no error: it is found in the report, and the command line exits with 1.
"""

from typing import ClassVar


class ExporterError(Exception):
    """Base of all errors raised by ``exporter``.

    Attributes:
        exit_code: What the command line exits with when this error ends a run.
    """

    exit_code: ClassVar[int] = 2


class InputError(ExporterError):
    """What was asked for or given cannot be used."""


class RecipeError(InputError):
    """An option is wrong, or wrong for this model."""


class ModelError(InputError):
    """The model cannot be read or handled."""


class DataError(InputError):
    """The data cannot be read, or do not fit the model."""


class OutputError(InputError):
    """The output folder cannot be written, or holds what must not be lost."""


class ConversionError(ExporterError):
    """A converter failed on this model."""

    exit_code = 3


def brief(error: BaseException, limit: int = 300) -> str:
    """Returns the first informative line of a third-party error, for a wrapping message.

    It ends like a sentence, so that another one may follow.

    Args:
        error: The error of the library.
        limit: The largest number of characters returned.
    """
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    if not text.endswith((".", "!", "?")):
        text += "."
    return text if len(text) <= limit else text[: limit - 1] + "…"
