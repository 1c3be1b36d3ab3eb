"""The table of formats: one file and one row for each, and those that other packages add."""

import re
from typing import Any

from exporter import plugins
from exporter.formats.base import Format
from exporter.formats.onnx.onnx import Onnx
from exporter.formats.onnx.ort import Ort
from exporter.formats.saved_model import SavedModel
from exporter.formats.tflite.c_source import CSource
from exporter.formats.tflite.tflite import TFLite
from exporter.options.groups import ALL

__all__ = ["FORMATS", "FORMAT_NAMES", "VARIANT_NAMES", "Format"]

FORMATS: dict[str, Format]

FORMAT_NAMES: tuple[str, ...]

VARIANT_NAMES: tuple[str, ...]
"""Variants of all formats, the one that is not quantized first."""

_TABLES = frozenset({"FORMATS", "FORMAT_NAMES", "VARIANT_NAMES"})

_REQUIRED = ("name", "suffix", "backends", "runtime")

_making: list[str] = []


def __getattr__(name: str) -> Any:
    """Makes the tables at their first use: another package's module may import ``base`` before."""
    if name not in _TABLES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _making:
        raise ImportError(f"{name} is being made: import what needs it within functions")
    _making.append(name)
    try:
        own = (SavedModel(), TFLite(), Onnx(), Ort(), CSource())
        formats: dict[str, Format] = {fmt.name: fmt for fmt in own}
        plugins.extend(plugins.FORMATS, lambda found: _add(found, formats))
    finally:
        _making.clear()
    names = (variant.name for fmt in formats.values() for variant in fmt.variants)
    made = {
        "FORMATS": formats,
        "FORMAT_NAMES": tuple(formats),
        "VARIANT_NAMES": tuple(dict.fromkeys(names)),
    }
    globals().update(made)
    return made[name]


def _add(found: Any, formats: dict[str, Format]) -> None:
    fmt = found() if isinstance(found, type) else found
    if not isinstance(fmt, Format):
        raise TypeError(f"it is no exporter.Format, but {type(fmt).__name__}")
    if lacking := [name for name in _REQUIRED if not hasattr(fmt, name)]:
        raise TypeError(f"the format has no {', '.join(lacking)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", fmt.name) or fmt.name == ALL:
        raise ValueError(f"{fmt.name!r} cannot be the name of a format")
    if not re.fullmatch(r"(\.\w+)?", fmt.suffix):
        raise ValueError(f"{fmt.suffix!r} cannot be the suffix of a format")
    plugins.require_new(f"the name {fmt.name!r}", formats.get(fmt.name))
    # Artifacts of a run are told apart by it.
    same = (other for other in formats.values() if fmt.suffix and other.suffix == fmt.suffix)
    plugins.require_new(f"the suffix {fmt.suffix!r}", next(same, None))
    formats[fmt.name] = fmt
