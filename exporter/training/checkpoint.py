"""Saves and loads the state of a training, in one file that is replaced atomically."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.data.files import read_arrays
from exporter.disk import scratch_folder, sync
from exporter.errors import OutputError, brief
from exporter.inputs import parse_json
from exporter.progress import Progress

T = TypeVar("T")

Arrays = Sequence[NDArray[Any]]

_PARTS = ("state", "optimizer", "best")


@dataclass(frozen=True)
class Checkpoint:
    """State from which a training goes on as if it had never stopped.

    ``state`` and ``best`` are values of the phase's variables, now and in the best epoch so far;
    ``progress`` is the position in the training as JSON values.
    """

    state: Arrays
    optimizer: Arrays
    best: Arrays
    progress: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, file: Path) -> None:
    """Writes a checkpoint; a process that dies meanwhile leaves the former file.

    Raises:
        OutputError: If it cannot be written.
    """
    arrays = {
        f"{part}-{index}": array
        for part in _PARTS
        for index, array in enumerate(getattr(checkpoint, part))
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(file.parent) as scratch:
            whole = scratch / file.name
            with whole.open("wb") as stream:
                text = np.frombuffer(json.dumps(checkpoint.progress).encode(), np.uint8)
                np.savez(stream, progress=text, **arrays)
            sync(whole)
            whole.replace(file)
    except OSError as error:
        raise OutputError(f"The checkpoint {file} cannot be written: {error}") from error


def load_checkpoint(file: Path, read: Callable[[Checkpoint], T], progress: Progress) -> T | None:
    """Reads a checkpoint; returns None if there is none, or with a note if it is damaged.

    Args:
        file: What ``save_checkpoint`` wrote.
        read: Makes what is returned of it; a checkpoint for which it raises is damaged.
        progress: Is told of a damaged checkpoint.
    """
    if not file.exists():
        return None
    try:
        arrays = read_arrays(file)
        names = [name.partition("-")[0] for name in arrays]
        state, optimizer, best = (
            [arrays[f"{part}-{index}"] for index in range(names.count(part))] for part in _PARTS
        )
        at = parse_json(bytes(arrays["progress"]))
        return read(Checkpoint(state, optimizer, best, at))
    except Exception as error:  # NumPy, zipfile and its codecs raise whatever they run into.
        progress.note(f"The checkpoint {file} is damaged, training starts anew: {brief(error)}")
        return None


def check_like(arrays: Arrays, wanted: Sequence[Any]) -> None:
    """Raises a ValueError if arrays of a checkpoint cannot be the values of variables."""
    shapes, others = ([tuple(each.shape) for each in part] for part in (arrays, wanted))
    numeric = all(array.dtype.kind in "biuf" for array in arrays)
    if shapes != others or not numeric or not all(map(_finite, arrays)):
        raise ValueError("its arrays are not those of this training.")


def _finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
