"""YAML 1.2, as recipes have it: JSON is a part of it, ``no`` is text, and ``1e-3`` a number.

Tags, aliases and keys that are given twice are refused.
"""

import re
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"

_CORE = (
    ("null", r"null|Null|NULL|~|", [*"nN~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
)
"""Values without quotes: their tag, what they look like, and how they begin."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # It comes without types.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            problem = "aliases and tags are not read"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that YAML 1.1, or 1.2, takes for another value."""


for _kind, _pattern, _begins in _CORE:
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), _begins)


def _number(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))  # Where YAML 1.1 takes 010 for 8.


def _string(loader: Any, node: Any) -> str:
    # JSON escapes a character beyond the 65,536th as two.
    text: str = loader.construct_scalar(node)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


_Loader.add_constructor(f"{_TAG}int", _number)
_Loader.add_constructor(f"{_TAG}str", _string)


def parse_yaml(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """Reads one document.

    Returns:
        Its values, and the line, from 1, of each key of its two outer levels.

    Raises:
        ValueError: If the text is no such document; the message names the line.
        RecursionError: If it is nested too deeply.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        _note_lines(node, (), lines)
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _note_lines(node: Any, place: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    """Notes the lines of the keys below a node, which must be given once each."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # Is refused when values are made.
        if key.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
            )
        seen.add(key.value)
        lines.setdefault((*place, key.value), key.start_mark.line + 1)
        _note_lines(value, (*place, key.value), lines)


def to_yaml(values: Any) -> str:
    """Returns values of JSON as YAML, in their order; ``parse_yaml`` gives them back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100)
    return text
