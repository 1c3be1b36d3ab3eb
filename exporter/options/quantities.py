"""Reads quantities from text: ``200k``, ``250KB``, ``50us``, ``0.5%``.

All functions raise a RecipeError if the text is no such quantity.
"""

import math
import re
from collections.abc import Mapping

from exporter.errors import RecipeError

MOST = 1e18
"""Largest quantity: whole numbers beyond are no exact ones."""

_COUNT_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_DECIMAL_BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_BYTE_UNITS = {**_DECIMAL_BYTES, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECOND_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART_UNITS = {"": 1.0, "%": 1e-2}


def parse_amount(text: str) -> int | float:
    """Reads a number of things, or a part of all: ``200k``, ``25%``, ``0.25``."""
    units = {**_COUNT_UNITS, **_PART_UNITS}
    value = _parse(text, units, "a number such as 200000 or 200k, or a part such as 25%")
    # What is neither a part nor whole is for the caller to refuse.
    return value if "%" in text or abs(value - round(value)) > 1e-6 * value else round(value)


def parse_count(text: str) -> int:
    """Reads a number of things: ``200000``, ``200k``, ``1.5M``."""
    return round(_parse(text, _COUNT_UNITS, "a number such as 200000, 200k or 1.5M"))


def parse_bytes(text: str) -> int:
    """Reads a size: ``250000``, ``250KB`` (1000 bytes each), ``244KiB`` (1024), ``1.5MB``."""
    return round(_parse(text, _BYTE_UNITS, "a size such as 250KB, 244KiB or 1.5MB"))


def parse_seconds(text: str) -> float:
    """Reads a time: ``50us``, ``1.2ms``, ``0.1s``; the unit must be given."""
    return _parse(text, _SECOND_UNITS, "a time such as 50us, 1.2ms or 0.1s")


def parse_part(text: str) -> float:
    """Reads a part of a whole: ``0.5%`` or ``0.005``."""
    return _parse(text, _PART_UNITS, "a part such as 0.5% or 0.005")


def _parse(text: str, units: Mapping[str, float], wanted: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-zµ%]*)\s*", text.lower())
    value = float(match[1]) * units[match[2]] if match and match[2] in units else math.inf
    if value > MOST:  # As of 1e999.
        raise RecipeError(f"Give {wanted}. Received: {text!r}.")
    return value
