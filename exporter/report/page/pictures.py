"""The arrays that a report draws, small enough to lie beside the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Array
from exporter.data.files import read_described, write_described
from exporter.errors import InputError

MOST_PIXELS = 128
"""Rows and columns of a matrix that are kept of it."""

Named = Mapping[str, Array]


@dataclass(frozen=True)
class Pictures:
    """What is drawn of one run; parts that a run does not have are empty.

    Attributes:
        spectra: Singular values by kernel: 2 x k, the numbers from 1 and the values over the
            largest.
        weights: Of each kernel its matrix ``W``, ``U``, ``S`` and ``V`` of its product of factors,
            the ``product``, and the ``difference``; evenly spaced rows and columns of each.
        confusion: Counts by output and model, ``baseline`` or ``compressed``: label x prediction.
        changes: Samples whose class changed, by output: ``sample`` (numbers in the test data),
            ``label`` if there are any, and the class by model, ``baseline`` first.
        images: The same samples by output, n x height x width (x 3) of bytes, if they are images.
    """

    spectra: Named = field(default_factory=dict)
    weights: Mapping[str, Named] = field(default_factory=dict)
    confusion: Mapping[str, Named] = field(default_factory=dict)
    changes: Mapping[str, Named] = field(default_factory=dict)
    images: Named = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Writes an ``.npz`` file."""
        arrays: list[Array] = []

        def numbered(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: numbered(each) for name, each in value.items()}
            arrays.append(value)
            return len(arrays) - 1

        described = numbered(vars(self))
        stored = {str(number): array for number, array in enumerate(arrays)}
        write_described(file, stored, described)

    @classmethod
    def load(cls, file: Path) -> "Pictures":
        """Reads what ``save`` wrote.

        Raises:
            InputError: If the file is none.
        """
        try:
            arrays, described = read_described(file)
            nested = {"weights", "confusion", "changes"}
            parts: dict[str, Any] = {
                part.name: {
                    name: {key: arrays[str(number)] for key, number in each.items()}
                    if part.name in nested
                    else arrays[str(each)]
                    for name, each in described[part.name].items()
                }
                for part in fields(cls)
            }
        except Exception as error:  # NumPy and JSON raise any exception on a damaged file.
            raise InputError(
                f"{str(file)!r} holds no pictures of a run: {type(error).__name__}: {error}. "
                "Remove it, and the report is drawn without them, or run exporter again."
            ) from error
        return cls(**parts)


def evenly(count: int, most: int = MOST_PIXELS) -> Array:
    """Returns at most so many evenly spaced indices, all of them if they are no more."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
