"""Recipes as files: read with the line of each fault, written, and the ready ones in this folder.

A file has the groups of a recipe, in YAML 1.2, JSON, which is a part of it, or TOML.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import RecipeError, brief, did_you_mean
from exporter.inputs import checked_path
from exporter.options.groups import Goal
from exporter.recipe import GROUP_OF, GROUPS, Recipe

READY = {
    "phone": "TFLite for Android and iOS, in float16 and int8, a quarter of the parameters",
    "microcontroller": "C source in int8 for TensorFlow Lite Micro, a quarter of the parameters",
    "browser": "ONNX for onnxruntime-web, whole and with weights of 8 bits",
    "server": "SavedModel and ONNX for CPUs, at most 1 % of accuracy lost",
    "study": "the experiment that this package grew out of: both models, with U, S and V",
}
"""The names of the ready recipes, and what each is for."""

SUFFIXES = (".yaml", ".yml", ".json", ".toml")

RECIPE_BYTES = 2**20
"""Longest file that is read."""

_WAYS = frozenset(option.name for option in Goal.options()) - {"target"}
"""Options of which one is given: another one replaces it."""

_TOML_LINE = re.compile(r"\s*(?:\[\s*([\w.-]+)\s*\]|([\w.-]+)\s*=)")

Place = tuple[str, ...]
"""A group, and an option in it; empty for the whole file."""


@dataclass(frozen=True)
class RecipeFile:
    """What a file says of a recipe.

    Attributes:
        name: The path, or the name of a ready recipe.
        options: The values that are given, by option.
        lines: Lines of the groups and options, from 1.
    """

    name: str
    options: Mapping[str, Any]
    lines: Mapping[Place, int]

    def choices(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options with some changed: one way of choosing ranks replaces another.

        Raises:
            RecipeError: If they contradict each other; it names the line.
        """
        replaced = _WAYS if _WAYS & {n for n, v in changes.items() if v is not None} else ()
        kept = {name: value for name, value in self.options.items() if name not in replaced}
        merged = {**kept, **changes}
        try:
            Recipe(**merged)
        except RecipeError as error:
            words = re.findall(r"\w+", str(error))  # The first one is usually the option.
            named = [word for word in words if word in kept and word not in changes]
            place = (GROUP_OF[named[0]], named[0]) if named else ()
            raise self.fault(place, error) if named else error from error
        return merged

    def fault(self, place: Place, told: object) -> RecipeError:
        """Returns an error that begins with file, line and field."""
        known = (place[:end] for end in range(len(place), 0, -1))
        line = next((self.lines[part] for part in known if part in self.lines), None)
        where = [self.name, *([f"line {line}"] if line else [])]
        where += [f"field {'.'.join(place)}"] if place else []
        return RecipeError(f"{', '.join(where)}: {told}")


def read_recipe(source: str) -> RecipeFile:
    """Reads a recipe from a file, or a ready one by its name.

    Paths in it are relative to the current folder, as those of the command line are.

    Raises:
        RecipeError: If it cannot be read, has an unknown or repeated key, or a value that an option
            does not take; the message names the line and the field.
    """
    path = Path(__file__).parent / f"{source}.yaml" if source in READY else Path(source)
    text = _text(source, path)
    empty = RecipeFile(source, {}, {})
    if path.suffix == ".toml":
        try:
            values: Any = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise empty.fault((), f"it is no TOML: {brief(error)}") from error
        lines = _toml_lines(text)
    else:
        from exporter.recipes.yaml_text import parse_yaml

        try:
            # In JSON, tabs stand between values alone; YAML knows none there.
            values, lines = parse_yaml(text.replace("\t", " ") if path.suffix == ".json" else text)
        except (ValueError, RecursionError) as error:
            kind = path.suffix.lstrip(".").upper()
            deep = isinstance(error, RecursionError)
            reason = "it is nested too deeply." if deep else brief(error)
            raise empty.fault((), f"it is no {kind} that can be read: {reason}") from error
    return _checked(RecipeFile(source, {}, lines), values)


def load_recipe(source: str, **changes: Any) -> Recipe:
    """Reads a recipe from a file of YAML, JSON or TOML, or a ready one by its name.

    Args:
        source: A path, or ``phone``, ``microcontroller``, ``browser``, ``server`` or ``study``.
        changes: Fields of ``Recipe`` that replace those of the file.

    Raises:
        RecipeError: If the file or a change is none; the message names the line and the field.
    """
    return Recipe(**read_recipe(source).choices(changes))


def recipe_text(recipe: Recipe, *comments: str) -> str:
    """Returns a recipe with all its options as YAML, below lines of comment."""
    from exporter.recipes.yaml_text import to_yaml

    return "".join(f"# {comment}\n" for comment in comments) + to_yaml(recipe.to_dict())


def _text(source: str, path: Path) -> str:
    if path.suffix not in SUFFIXES or not Path(checked_path(str(path))).is_file():
        raise RecipeError(
            f"A recipe must be a file that ends in {', '.join(SUFFIXES)}, or one of "
            f"{', '.join(READY)}. Received: {source!r}"
            f"{'' if path.suffix not in SUFFIXES else ', which is not there'}."
            f"{did_you_mean(source, READY)}"
        )
    try:
        with path.open("rb") as stream:
            content = stream.read(RECIPE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {source!r} cannot be read: {error}.") from error
    if len(content) > RECIPE_BYTES:
        raise RecipeError(
            f"A recipe must have at most {RECIPE_BYTES:,} bytes. Received: {source!r}."
        )
    return text


def _checked(file: RecipeFile, values: Any) -> RecipeFile:
    """Checks each option by itself."""
    if not isinstance(values, Mapping):
        kind = "nothing" if values is None else type(values).__name__
        raise file.fault(
            (), f"a recipe must have the groups {', '.join(GROUPS)}. Received: {kind}."
        )
    found: dict[str, Any] = {}
    for name, group in values.items():
        if name not in GROUPS:
            belongs = f" It belongs into group {GROUP_OF[name]}." if name in GROUP_OF else ""
            hint = belongs or did_you_mean(name, GROUPS)
            raise file.fault((str(name),), f"unknown group. Known: {', '.join(GROUPS)}.{hint}")
        known = {option.name: option for option in GROUPS[name].options()}
        if not isinstance(group, Mapping):
            raise file.fault(
                (name,), f"must have options of {', '.join(known)}. Received: {group!r}."
            )
        for key, value in group.items():
            place = (name, str(key))
            if key not in known:
                elsewhere = f" It belongs into group {GROUP_OF[key]}." if key in GROUP_OF else ""
                hint = elsewhere or did_you_mean(key, known)
                raise file.fault(place, f"unknown option. Known: {', '.join(known)}.{hint}")
            if value is None and known[key].default is None:
                continue  # As if it were left out.
            try:
                found[key] = known[key].value.check(key, value)
            except RecipeError as error:
                raise file.fault(place, error) from error
    return RecipeFile(file.name, found, file.lines)


def _toml_lines(text: str) -> dict[Place, int]:
    """Finds the lines of groups and options; those of inline tables are not found."""
    found: dict[Place, int] = {}
    group: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TOML_LINE.match(line):
            header, key = match.groups()
            group = tuple(header.split(".")) if header else group
            place = group if header else (*group, *key.split("."))
            found.setdefault(place, number)
    return found
