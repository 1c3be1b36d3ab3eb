"""Runs code of the user's that defines classes of a model."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.errors import RecipeError


def import_classes(names: Iterable[str]) -> None:
    """Imports Python files and modules, and makes the Keras classes in them known to Keras.

    Functions are not made known: a model file could have any of them called.

    Raises:
        RecipeError: If one does not exist, or raises.
    """
    for name in names:
        register(vars(_imported(name)))


def _imported(name: str) -> ModuleType:
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise RecipeError(f"imports must be Python files or modules. {name!r} does not exist.")
    try:
        return _run(Path(name).resolve()) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if is_file or error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise RecipeError(
            f"imports must be Python files or modules. There is no module {name!r}; give a file "
            "with its path and its ending, such as folder/layers.py."
        ) from error
    except (Exception, SystemExit) as error:  # It may raise whatever it wants.
        raise _failed(name, error) from error


def _run(file: Path) -> ModuleType:
    """Runs a file as a module of its own name, beside which it may import others."""
    name = file.stem if file.stem not in sys.modules else f"_imported_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"Python cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # At the end, so that no file there stands in for a module of a library.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module


def _failed(name: str, error: BaseException) -> RecipeError:
    return RecipeError(f"{name!r} was imported, and raised {type(error).__name__}: {error}")


def register(found: Mapping[str, Any]) -> None:
    """Makes the classes of Keras objects known to Keras that are found by name."""
    import keras

    kinds = (
        keras.Layer,
        keras.losses.Loss,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
        keras.initializers.Initializer,
    )
    known = keras.saving.get_custom_objects()
    for name, value in found.items():
        own = isinstance(value, type) and issubclass(value, kinds)
        if own and value.__module__.partition(".")[0] != "keras":
            known[name] = value
