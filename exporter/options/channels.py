"""How many channels a run is asked to leave: read, and checked."""

from exporter.errors import RecipeError, did_you_mean
from exporter.options.quantities import parse_part

ChannelPart = float | str
"""A part of the network's parameters or multiply-accumulates, or one of ``CHANNEL_NAMES``."""

FREE = "free"
"""Removes those channels that cost nothing."""

AUTO_CHANNELS = "auto"
"""Divides a budget between channels and ranks, by trying."""

CHANNEL_NAMES = (FREE, AUTO_CHANNELS)

_WANTED = (
    "must be a part of more than 0 and less than 1, such as 0.5 or 50%, or one of "
    f"{', '.join(CHANNEL_NAMES)}."
)


def parse_channels(text: str) -> ChannelPart:
    """Reads ``0.5``, ``50%`` or a name; raises RecipeError if the text is none of these."""
    if text.strip() in CHANNEL_NAMES:
        return text.strip()
    try:
        return checked_channels(parse_part(text))
    except RecipeError as error:
        suggestion = did_you_mean(text, CHANNEL_NAMES)
        raise RecipeError(f"channels {_WANTED} Received: {text!r}.{suggestion}") from error


def checked_channels(value: object) -> ChannelPart:
    """Returns a part, or a name; raises RecipeError if the value is neither."""
    if isinstance(value, str):
        return parse_channels(value)
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise RecipeError(f"channels {_WANTED} Received: {value!r}.")
