"""What a run is asked to do."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from exporter.errors import RecipeError
from exporter.formats import ALL_FORMATS, FORMAT_NAMES

Rank = int | Literal["full"] | Mapping[str, int]
"""One rank for all layers, ``"full"`` (the notebook's Dfull), or a rank by layer name."""

OPSETS = range(13, 19)
"""ONNX operator sets that the converter can be asked for."""

_RANK_HELP = "give a whole number >= 1, 'full', or 'layer=rank,layer=rank'"


def parse_rank(text: str) -> Rank:
    """Reads ``20``, ``full`` or ``dense_1=32,dense_2=16``.

    Raises:
        RecipeError: If the text is none of these.
    """
    text = text.strip()
    if text == "full":
        return "full"
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
        raise RecipeError(f"Rank cannot be read: {_RANK_HELP}. Received: {received!r}.") from error


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a run is asked to do; validated, and the same after a trip through JSON.

    Attributes:
        model: Path of a ``.keras`` or ``.h5`` file; None trains the reference MLP on ``data``.
        data: ``"digits"`` (embedded), ``"none"``, a path to ``.npz`` or ``.npy``, or a Keras data
            set by name.
        rank: One rank for all layers, ``"full"``, or a mapping from layer name to rank.
        formats: Formats to export to, in this order. ``"all"`` stands for every one.
        output: Folder to write to; None is ``artifacts/<model name>-rank<rank>``.
        atol: Absolute tolerance of parity, in units of the output. None, with ``rtol`` None as
            well, derives the tolerance from the float32 rounding error of the model itself.
        rtol: Relative tolerance of parity, a fraction of the reference value.
        seed: Seed of training and of random inputs.
        merge: Whether S is merged into U. False gives the three-layer U, S, V graph.
        opset: ONNX operator set.
        force: Whether a former run in the output folder may be replaced.

    Raises:
        RecipeError: If a value is out of its range.
    """

    model: str | None = None
    data: str = "digits"
    rank: Rank = 20
    formats: tuple[str, ...] = ("tflite",)
    output: str | None = None
    atol: float | None = None
    rtol: float | None = None
    seed: int = 0
    merge: bool = True
    opset: int = 17
    force: bool = False

    def __post_init__(self) -> None:
        self._check_rank()
        object.__setattr__(self, "formats", _checked_formats(self.formats))
        for name in ("model", "output"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise RecipeError(f"{name} must be a path as text. Received: {value!r}.")
        if not isinstance(self.data, str) or not self.data:
            raise RecipeError(f"data must be a name or a path as text. Received: {self.data!r}.")
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_number(value) or not math.isfinite(value) or value < 0:
                raise RecipeError(f"{name} must be a finite number >= 0. Received: {value!r}.")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise RecipeError(f"seed must be within 0 and 2**32 - 1. Received: {self.seed!r}.")
        if not _is_whole(self.opset) or self.opset not in OPSETS:
            raise RecipeError(
                f"opset must be within {OPSETS.start} and {OPSETS.stop - 1}; 17 is the default. "
                f"Received: {self.opset!r}."
            )
        for name in ("merge", "force"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(
                    f"{name} must be True or False. Received: {getattr(self, name)!r}."
                )

    def _check_rank(self) -> None:
        if isinstance(self.rank, Mapping):
            if not self.rank:
                raise RecipeError("rank names no layer. Give at least one 'layer=rank'.")
            for name in self.rank:
                if not isinstance(name, str):
                    raise RecipeError(f"rank must name layers as text. Received: {name!r}.")
            # A copy, so that a frozen recipe cannot change under its owner.
            object.__setattr__(self, "rank", dict(self.rank))
            named = [(f"rank of layer {name!r}", rank) for name, rank in self.rank.items()]
        elif self.rank == "full":
            return
        else:
            named = [("rank", self.rank)]
        for label, rank in named:
            if not _is_whole(rank) or rank < 1:
                raise RecipeError(
                    f"{label} must be a whole number >= 1 (or 'full' for all layers). "
                    f"Received: {rank!r}."
                )

    @property
    def rank_label(self) -> str:
        """The rank as it stands in a folder's name: ``rank20``, ``rank-full``, ``rank-mixed``."""
        if isinstance(self.rank, int):
            return f"rank{self.rank}"
        return "rank-full" if self.rank == "full" else "rank-mixed"

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as values that JSON knows."""
        return {**dataclasses.asdict(self), "formats": list(self.formats)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what ``to_dict`` returned.

        Raises:
            RecipeError: If a key is unknown or a value is out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise RecipeError(f"Unknown options {unknown}. Known: {sorted(known)}.")
        return cls(**values)

    def to_json(self) -> str:
        """Returns the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what ``to_json`` returned.

        Raises:
            RecipeError: If the text is no JSON object, or ``from_dict`` refuses it.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise RecipeError(f"A recipe is a JSON object. Received: {type(values).__name__}.")
        return cls.from_dict(values)


def _checked_formats(formats: object) -> tuple[str, ...]:
    if isinstance(formats, str) or not isinstance(formats, (list, tuple)):
        raise RecipeError(f"formats must be a list of names. Received: {formats!r}.")
    chosen: list[str] = []
    for name in formats:
        if name != ALL_FORMATS and name not in FORMAT_NAMES:
            known = ", ".join([*FORMAT_NAMES, ALL_FORMATS])
            raise RecipeError(f"Unknown format {name!r}. Known formats: {known}.")
        chosen.extend(FORMAT_NAMES if name == ALL_FORMATS else [name])
    if not chosen:
        raise RecipeError(f"formats is empty. Known formats: {', '.join(FORMAT_NAMES)}.")
    return tuple(dict.fromkeys(chosen))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
