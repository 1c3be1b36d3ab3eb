"""Sizes of the axes that a model leaves free: those of its only input, or of each input."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from exporter.errors import RecipeError

InputSize: TypeAlias = tuple[int, ...]

Size: TypeAlias = InputSize | dict[str, InputSize]

_WANTED = (
    "size must be the sizes of the free axes, which are whole numbers from 1 on, such as 96,96; or "
    "those of each input, as image=96,96;tokens=128."
)


def parse_size(text: str) -> Size:
    """Reads sizes from the text of a command line; raises RecipeError if they are none."""
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(";") if part.strip()]
        return checked_size({name.strip(): _parse_one(value) for name, _, value in pairs})
    return checked_size(_parse_one(text))


def _parse_one(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"{_WANTED} Received: {text!r}.") from error


def checked_size(value: Any) -> Size:
    """Returns sizes as they are kept, as tuples; raises RecipeError if they are none."""
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value):
        return {name: _checked_one(one) for name, one in value.items()}
    return _checked_one(value)


def _checked_one(value: Any) -> InputSize:
    listed = [value] if type(value) is int else value
    whole = isinstance(listed, (list, tuple)) and all(type(n) is int and n > 0 for n in listed)
    if not whole or not listed:
        raise RecipeError(f"{_WANTED} Received: {value!r}.")
    return tuple(listed)
