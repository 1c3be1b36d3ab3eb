"""Values that are given for all inputs, or for each by its name."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def parse_by_input(text: str, parse: Callable[[str], Any]) -> Any:
    """Reads one value, or ``NAME=VALUE`` for each input, separated by semicolons."""
    if "=" not in text:
        return parse(text)
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip(): parse(value) for name, _, value in pairs}


def checked_by_input(value: Any, check: Callable[[Any], T]) -> T | dict[str, T]:
    """Returns what a check makes of one value, or of each in a mapping by the names of inputs."""
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value):
        return {name: check(one) for name, one in value.items()}
    return check(value)


def schema_by_input(one: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON schema of one value, or of one for each input."""
    return {"anyOf": [one, {"type": "object", "additionalProperties": one, "minProperties": 1}]}
