"""The rank as a run is asked for it: read, and checked."""

import re
from collections.abc import Mapping

from exporter.errors import RecipeError, did_you_mean

MOST_RANK = 2**31 - 1
"""No matrix of a larger rank fits into memory."""

Rank = int | float | str | Mapping[str, int]
"""One rank for all layers, a part of each layer's parameters (between 0 and 1), the name of an
automatic policy (``RANK_NAMES``), or a rank by layer name."""

NO_RANK = "none"

AUTO_RANK = "auto"

RANK_NAMES = (NO_RANK, "full", AUTO_RANK, "stable", "vbmf")
"""``none`` leaves all layers whole; ``full`` is the notebook's Dfull; ``stable`` and ``vbmf`` read
the rank off the spectrum; ``auto`` is the better one of these or, beside a budget, what that takes.
"""

DEFAULT_RANK = 20

_RANK_HELP = (
    f"give a whole number >= 1, a part such as 0.25, {', '.join(map(repr, RANK_NAMES))}, or "
    "'layer=rank,layer=rank'"
)


def parse_rank(text: str) -> Rank:
    """Reads ``20``, ``0.25``, ``full``, ``auto`` or ``dense_1=32,dense_2=16``.

    Raises:
        RecipeError: If the text is none of these.
    """
    text = text.strip()
    if text in RANK_NAMES:
        return text
    if re.fullmatch(r"0?\.[0-9]+", text):
        return float(text)
    if "=" not in text:
        return _parse_whole(text, text)
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise RecipeError(f"Rank for a layer must read 'layer=rank'. Received: {part!r}.")
        if name in ranks:
            raise RecipeError(f"Layer {name!r} is given two ranks in {text!r}.")
        ranks[name] = _parse_whole(value, part)
    return ranks


def _parse_whole(text: str, received: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RecipeError(
            f"Rank cannot be read: {_RANK_HELP}. Received: {received!r}."
            f"{did_you_mean(text, RANK_NAMES if text == received else ())}"
        ) from error


def checked_rank(rank: object) -> Rank:
    """Returns a rank, a mapping as a copy of it.

    Raises:
        RecipeError: If the value is no rank.
    """
    if isinstance(rank, Mapping):
        if not rank:
            raise RecipeError("rank names no layer. Give at least one 'layer=rank'.")
        for name in rank:
            if not isinstance(name, str):
                raise RecipeError(f"rank must name layers as text. Received: {name!r}.")
        return {name: _checked_number(f"rank of layer {name!r}", rank[name]) for name in rank}
    if (isinstance(rank, float) and 0 < rank < 1) or (isinstance(rank, str) and rank in RANK_NAMES):
        return rank
    return _checked_number("rank", rank)


def _checked_number(label: str, rank: object) -> int:
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST_RANK:
        suggestion = did_you_mean(rank, RANK_NAMES if label == "rank" else ())
        raise RecipeError(
            f"{label} must be a whole number >= 1 (for all layers also a part between 0 and 1, or "
            f"one of {', '.join(RANK_NAMES)}). Received: {rank!r}.{suggestion}"
        )
    return rank
