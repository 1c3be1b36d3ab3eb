"""The scale of inputs: a name, means and standard deviations, or one of these for each input."""

import math
from typing import Any, TypeAlias

from exporter.errors import RecipeError, did_you_mean
from exporter.options.by_input import checked_by_input, parse_by_input

AUTO = "auto"

SCALE_NAMES = (AUTO, "none", "unit", "symmetric", "caffe", "torch")

Numbers: TypeAlias = tuple[float, ...]

InputScale: TypeAlias = str | tuple[Numbers, Numbers]
"""A name, or means and standard deviations: one of each, or one for each channel."""

Scale: TypeAlias = InputScale | dict[str, InputScale]

_WANTED = (
    f"scale must be one of {', '.join(SCALE_NAMES)}, or MEAN,STD, which are finite numbers and the "
    "second one not 0 (or as many of each as there are channels, as 1/2/3,4/5/6); or one of these "
    "for each input, as image=unit;depth=0,1000."
)


def parse_scale(text: str) -> Scale:
    """Reads a scale from the text of a command line.

    Raises:
        RecipeError: If it is none.
    """
    return checked_scale(parse_by_input(text, _parse_one))


def _parse_one(text: str) -> Any:
    text = text.strip()
    if text in SCALE_NAMES:
        return text
    try:
        return [[float(number) for number in part.split("/")] for part in text.split(",")]
    except ValueError as error:
        raise _refused(text) from error


def checked_scale(value: Any) -> Scale:
    """Returns a scale as it is kept: tuples in place of lists and of single numbers.

    Raises:
        RecipeError: If it is none.
    """
    return checked_by_input(value, _checked_one)


def _checked_one(value: Any) -> InputScale:
    if isinstance(value, str) and value in SCALE_NAMES:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        mean, std = (tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in value)
        numbers = all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < math.inf
            for v in (*mean, *std)
        )
        if numbers and all(std) and mean and std and (len({len(mean), len(std), 1}) <= 2):
            return tuple(map(float, mean)), tuple(map(float, std))
    raise _refused(value)


def _refused(value: object) -> RecipeError:
    suggestion = did_you_mean(value, SCALE_NAMES)
    return RecipeError(f"{_WANTED} Received: {value!r}.{suggestion}")
