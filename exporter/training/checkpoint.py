"""Saves and loads the state of a training, in one file that is replaced atomically."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.disk import scratch_folder, sync
from exporter.errors import OutputError

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
                np.savez(stream, progress=np.array(json.dumps(checkpoint.progress)), **arrays)
            sync(whole)
            whole.replace(file)
    except OSError as error:
        raise OutputError(f"The checkpoint {file} cannot be written: {error}") from error


def load_checkpoint(file: Path) -> Checkpoint | None:
    """Reads a checkpoint; returns None if there is none.

    Raises:
        OutputError: If the file is no checkpoint.
    """
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as loaded:
            names = [name.partition("-")[0] for name in loaded.files]
            state, optimizer, best = (
                [loaded[f"{part}-{index}"] for index in range(names.count(part))] for part in _PARTS
            )
            return Checkpoint(state, optimizer, best, json.loads(str(loaded["progress"])))
    except Exception as error:  # NumPy, zipfile and its codecs raise whatever they run into.
        raise OutputError(
            f"The checkpoint {file} cannot be read; remove it to train anew: {error}"
        ) from error
