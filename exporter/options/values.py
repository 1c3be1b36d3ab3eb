"""Kinds of values that options take: how they are checked, read from text, and told in a schema."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from exporter.errors import RecipeError, did_you_mean
from exporter.inputs import checked_path
from exporter.options.by_input import schema_by_input
from exporter.options.channels import CHANNEL_NAMES, checked_channels, parse_channels
from exporter.options.quantities import parse_amount
from exporter.options.rank import RANK_NAMES, checked_rank, parse_rank
from exporter.options.scale import SCALE_NAMES, checked_scale, parse_scale
from exporter.options.size import checked_size, parse_size

MOST_WHOLE = 2**63 - 1
"""Largest whole number that an option takes; libraries know no larger ones."""


@dataclass(frozen=True)
class Value:
    """What an option takes.

    Attributes:
        wanted: The values, in words; follows "must be" in messages.
        takes: Tells whether the option takes a value.
        schema: JSON schema of the values.
        parser: Arguments of ``argparse``'s ``add_argument``.
        keep: Turns a value that is taken into the one that is kept; may raise RecipeError.
        names: Names that are among the values, for whoever mistypes one.
        read: Reads a quantity from its text, as on the command line; None if text is no quantity.
    """

    wanted: str
    takes: Callable[[Any], bool]
    schema: Mapping[str, Any]
    parser: Mapping[str, Any]
    keep: Callable[[Any], Any] = lambda value: value
    names: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None

    def check(self, name: str, value: Any) -> Any:
        """Returns a value as it is kept.

        Raises:
            RecipeError: If the option, called ``name``, does not take it.
        """
        if self.read is not None and isinstance(value, str):
            try:
                value = self.read(value)
            except RecipeError as error:
                raise RecipeError(f"{name} cannot be read. {error}") from error
        if not self.takes(value):
            raise RecipeError(f"{name} must be {self.refusal(value)}")
        return self.keep(value)

    def refusal(self, value: Any) -> str:
        """Returns the end of a message that begins with ``must be``."""
        return f"{self.wanted}. Received: {value!r}.{did_you_mean(value, self.names)}"


def whole(
    least: int,
    most: int | None = None,
    *,
    unit: str = "",
    read: Callable[[str], int] | None = None,
) -> Value:
    """Returns the value of an option that takes whole numbers, which may count a unit.

    ``read`` turns text into a number; without it, only a command line has the number as text.
    """
    wanted = f"a {f'number of {unit}' if unit else 'whole number'} >= {least}"
    schema = {"type": "integer", "minimum": least}
    if most is not None:
        wanted, schema = f"a whole number within {least} and {most}", {**schema, "maximum": most}

    def takes(value: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return least <= value <= (MOST_WHOLE if most is None else most)

    reader = read or _told(int, wanted)
    return Value(wanted, takes, schema, {"type": reader, "metavar": "N"}, read=read)


def wholes(least: int, most: int, *, unit: str) -> Value:
    """Returns the value of an option that takes whole numbers, separated by commas as text."""
    one = whole(least, most, unit=unit)
    wanted = f"numbers of {unit} from {least} to {most}, such as 1,2"

    def takes(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and bool(value) and all(map(one.takes, value))

    reader = _told(lambda text: [int(each) for each in text.split(",")], wanted)
    schema = {"type": "array", "items": one.schema, "minItems": 1}
    return Value(
        wanted, takes, schema, {"type": reader, "metavar": "N,N"}, lambda v: tuple(sorted(set(v)))
    )


def number(
    least: float,
    most: float = math.inf,
    *,
    inside: bool = False,
    read: Callable[[str], float] | None = None,
    metavar: str = "X",
) -> Value:
    """Returns the value of an option that takes finite numbers, the ends not if ``inside``.

    ``read`` turns text into a number; without it, only a command line has the number as text.
    """
    above, below = ("more than", "less than") if inside else ("at least", "at most")
    low, high = ("exclusiveMinimum", "exclusiveMaximum") if inside else ("minimum", "maximum")
    wanted, schema = f"a number of {above} {least:g}", {"type": "number", low: least}
    if math.isfinite(most):
        wanted, schema = f"{wanted} and {below} {most:g}", {**schema, high: most}

    def takes(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        within = least < value < most if inside else least <= value <= most
        return abs(value) <= sys.float_info.max and within  # False of NaN, too.

    reader = read or _told(float, wanted)
    return Value(wanted, takes, schema, {"type": reader, "metavar": metavar}, read=read)


def _told(read: Callable[[str], Any], wanted: str) -> Callable[[str], Any]:
    """Returns a reader for the command line that refuses text in the words of the option."""

    def told(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be {wanted}. Received: {text!r}.") from error

    return told


def amount() -> Value:
    """Returns the value of an option that takes a number of things, or a part of all of them."""

    def takes(value: Any) -> bool:
        return whole(1).takes(value) or (isinstance(value, float) and 0 < value < 1)

    part = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    wanted = "a whole number >= 1, or a part of the baseline's of more than 0 and less than 1"
    schema = {"anyOf": [whole(1).schema, part]}
    return Value(
        wanted, takes, schema, {"type": parse_amount, "metavar": "N|PART"}, read=parse_amount
    )


def flag(default: bool) -> Value:
    """Returns the value of a switch; if it is on by default, its flag begins with ``--no-``."""
    action = {"action": "store_false" if default else "store_true"}
    return Value("True or False", lambda v: isinstance(v, bool), {"type": "boolean"}, action)


def choice(*names: str) -> Value:
    """Returns the value of an option that takes one of some names."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be {value.refusal(text)}")
        return text

    listed, parser = f"one of {', '.join(names)}", {"type": read, "choices": names}
    value = Value(listed, lambda v: v in names, {"enum": list(names)}, parser, names=names)
    return value


def text(wanted: str, *, empty: bool = False, metavar: str = "FILE") -> Value:
    """Returns the value of an option that takes text, which may be ``empty``."""
    least = int(not empty)
    schema, parser = {"type": "string", "minLength": least}, {"metavar": metavar}
    return Value(wanted, lambda v: isinstance(v, str) and len(v) >= least, schema, parser)


def path(wanted: str, *, metavar: str = "FILE") -> Value:
    """Returns the value of an option that takes a path, or a name that is no path."""
    return replace(text(wanted, metavar=metavar), keep=checked_path)


def paths(wanted: str, metavar: str) -> Value:
    """Returns the value of an option that is given once for each path; it may be left out."""
    return replace(texts(wanted, metavar), keep=lambda listed: tuple(map(checked_path, listed)))


def names(metavar: str) -> Value:
    """Returns the value of an option that takes a list of names; the recipe knows which."""
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}
    parser = {"action": "extend", "type": _split, "metavar": metavar}
    return Value("a list of names", lambda v: isinstance(v, (list, tuple)), schema, parser, tuple)


def texts(wanted: str, metavar: str) -> Value:
    """Returns the value of an option that is given once for each text; it may be left out."""
    schema = {"type": "array", "items": {"type": "string", "minLength": 1}}

    def takes(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(v and isinstance(v, str) for v in value)

    return Value(wanted, takes, schema, {"action": "append", "metavar": metavar}, tuple)


def rank() -> Value:
    """Returns the value of the option that takes a rank; see ``exporter.options.rank``."""
    schemas = [
        whole(1).schema,
        number(0, 1, inside=True).schema,
        choice(*RANK_NAMES).schema,
        {"type": "object", "additionalProperties": whole(1).schema, "minProperties": 1},
    ]
    parser = {"type": parse_rank, "metavar": "RANK"}
    return Value("a rank", lambda v: True, {"anyOf": schemas}, parser, checked_rank)


def channels() -> Value:
    """Returns the value of the option that takes channels; see ``exporter.options.channels``."""
    schemas = [number(0, 1, inside=True).schema, choice(*CHANNEL_NAMES).schema]
    parser = {"type": parse_channels, "metavar": "PART"}
    return Value("a part", lambda v: True, {"anyOf": schemas}, parser, checked_channels)


def scale() -> Value:
    """Returns the value of the option that takes a scale; see ``exporter.options.scale``."""
    number = {"type": "number"}
    numbers = {"anyOf": [number, {"type": "array", "items": number, "minItems": 1}]}
    pair = {"type": "array", "items": numbers, "minItems": 2, "maxItems": 2}
    one = {"anyOf": [choice(*SCALE_NAMES).schema, pair]}
    parser = {"type": parse_scale, "metavar": "SCALE"}
    return Value("a scale", lambda v: True, schema_by_input(one), parser, checked_scale)


def size() -> Value:
    """Returns the value of the option that takes sizes; see ``exporter.options.size``."""
    number = {"type": "integer", "minimum": 1}
    one = {"anyOf": [number, {"type": "array", "items": number, "minItems": 1}]}
    parser = {"type": parse_size, "metavar": "SIZE"}
    return Value("sizes of free axes", lambda v: True, schema_by_input(one), parser, checked_size)


def _split(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]
