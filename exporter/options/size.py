"""Sizes of the axes that a model leaves free: those of its only input, or of each input."""

from typing import Any, TypeAlias

from exporter.errors import RecipeError
from exporter.options.by_input import checked_by_input, parse_by_input

InputSize: TypeAlias = tuple[int, ...]

Size: TypeAlias = InputSize | dict[str, InputSize]

MOST_SIZE = 2**31 - 1
"""Largest size of an axis that runtimes know."""

_WANTED = (
    "size must be the sizes of the free axes, which are whole numbers from 1 on, such as 96,96; or "
    "those of each input, as image=96,96;tokens=128."
)


def parse_size(text: str) -> Size:
    """Reads sizes from the text of a command line; raises RecipeError if they are none."""
    return checked_size(parse_by_input(text, _parse_one))


def _parse_one(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"{_WANTED} Received: {text!r}.") from error


def checked_size(value: Any) -> Size:
    """Returns sizes as they are kept, as tuples; raises RecipeError if they are none."""
    return checked_by_input(value, _checked_one)


def _checked_one(value: Any) -> InputSize:
    listed = [value] if type(value) is int else value
    whole = isinstance(listed, (list, tuple)) and all(
        type(n) is int and 0 < n <= MOST_SIZE for n in listed
    )
    if not whole or not listed:
        raise RecipeError(f"{_WANTED} Received: {value!r}.")
    return tuple(listed)
