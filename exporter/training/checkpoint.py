"""The state of a training that was cut off, in one file that is replaced at once."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import OutputError

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        state: Values of the phase's variables.
        optimizer: Values of the optimizer's variables.
        best: Values of the phase's variables in the best epoch so far.
        progress: Where it stands; JSON values.
    """

    state: Arrays
    optimizer: Arrays
    best: Arrays
    progress: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, file: Path) -> None:
    """Writes a checkpoint; a process that dies meanwhile leaves the former one.

    Raises:
        OutputError: If it cannot be written.
    """
    arrays = {
        f"{part}-{index}": array
        for part in ("state", "optimizer", "best")
        for index, array in enumerate(getattr(checkpoint, part))
    }
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, progress=np.array(json.dumps(checkpoint.progress)), **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise OutputError(f"The checkpoint {file} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def load_checkpoint(file: Path) -> Checkpoint | None:
    """Reads a checkpoint; None if there is none.

    Raises:
        OutputError: If the file is no checkpoint.
    """
    if not file.exists():
        return None
    parts: dict[str, dict[int, NDArray[Any]]] = {"state": {}, "optimizer": {}, "best": {}}
    try:
        with np.load(file, allow_pickle=False) as loaded:
            progress = json.loads(str(loaded["progress"]))
            for name in loaded.files:
                part, _, index = name.partition("-")
                if index:
                    parts[part][int(index)] = loaded[name]
    except Exception as error:  # NumPy, zipfile and its codecs raise whatever they run into.
        raise OutputError(
            f"The checkpoint {file} cannot be read; remove it to train anew: {error}"
        ) from error

    def in_order(part: str) -> list[NDArray[Any]]:
        return [parts[part][index] for index in sorted(parts[part])]

    return Checkpoint(in_order("state"), in_order("optimizer"), in_order("best"), progress)
