"""How results print: on one screen, whatever they hold."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

LINES, COLUMNS = 24, 100

T = TypeVar("T")


def fits_screen(kind: type[T]) -> type[T]:
    """Gives a dataclass a ``repr`` of at most ``LINES`` lines; for use above ``dataclass``.

    Fields that have their default are left out, arrays are told by type and shape, and what does
    not fit is left out from the inside.
    """
    kind.__repr__ = _representation  # type: ignore[method-assign]
    kind.__rich_repr__ = _fields  # type: ignore[attr-defined]
    return kind


def _representation(result: Any) -> str:
    from rich.pretty import pretty_repr

    for depth in (4, 3, 2, 1):
        text: str = pretty_repr(
            result, max_width=COLUMNS, max_length=4, max_string=64, max_depth=depth
        )
        if text.count("\n") < LINES:
            break
    return text


def _fields(result: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if type(value) is not type(default) or value != default:
            yield field.name, _in_short(value)


def _in_short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_short(each) for key, each in value.items()}
    is_array = getattr(value, "shape", ()) and hasattr(value, "dtype")
    return _Array(value) if is_array and not dataclasses.is_dataclass(value) else value


class _Array:
    """Stands for an array."""

    def __init__(self, array: Any) -> None:
        self._text = f"<{getattr(array.dtype, 'name', array.dtype)} {tuple(array.shape)}>"

    def __repr__(self) -> str:
        return self._text
