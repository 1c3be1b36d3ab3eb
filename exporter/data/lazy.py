"""Arrays whose samples are read when they are asked for."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Index = NDArray[np.intp]
Step = Callable[[Array], Array]

CHUNK_BYTES = 2**24
"""Size of a chunk, where a whole array is read in chunks."""

HELD_BYTES = 2**29
"""Arrays that are read several times are loaded into memory if they take no more."""


class Rows(Protocol):
    """Source of the samples of a lazy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along the first axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples."""

    def read(self, rows: slice | Index) -> Array:
        """Reads samples, by a slice of positive step or by ascending numbers, into memory."""


class LazyArray:
    """Samples that are read when they are asked for: ``array[:256]`` is a NumPy array.

    ``shape``, ``dtype``, ``ndim``, ``size`` and ``nbytes`` are those of a NumPy array.
    """

    def __init__(
        self, source: Rows, rows: range | Index | None = None, steps: tuple[Step, ...] = ()
    ) -> None:
        """Takes the samples with the numbers ``rows``, or all, and applies ``steps`` when read."""
        self.source = source
        self._rows = range(source.shape[0]) if rows is None else rows
        self._steps = steps
        sample, self.dtype = source.shape[1:], source.dtype
        if steps:
            nothing = self._transformed(np.empty((0, *sample), self.dtype))
            sample, self.dtype = nothing.shape[1:], nothing.dtype
        self.shape = (len(self._rows), *sample)
        self.ndim = len(self.shape)

    @property
    def size(self) -> int:
        """As of a NumPy array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice | Index) -> Array:
        """Reads the samples at a slice, or at numbers in any order."""
        rows = _select(self._rows, key)
        if isinstance(rows, range) and rows.step > 0:
            return self._transformed(self.source.read(slice(rows.start, rows.stop, rows.step)))
        rows = np.asarray(rows, np.intp)
        order = np.argsort(rows, kind="stable")
        ascending = self.source.read(rows[order])
        samples = np.empty_like(ascending)
        samples[order] = ascending
        return self._transformed(samples)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        return np.asarray(self[:], dtype)

    def take(self, key: slice | Index) -> "LazyArray":
        """Selects the samples at a slice or at numbers, without reading them."""
        return LazyArray(self.source, _select(self._rows, key), self._steps)

    def map(self, step: Step) -> "LazyArray":
        """Applies a function of any number of samples, none included, when samples are read."""
        return LazyArray(self.source, self._rows, (*self._steps, step))

    def over(self, source: Rows) -> "LazyArray":
        """Selects the same samples of another source."""
        return LazyArray(source, self._rows, self._steps)

    def min(self) -> Any:
        """Reads all samples in chunks for their minimum."""
        return min(chunk.min() for chunk in chunks(self._ascending()))

    def max(self) -> Any:
        """Reads all samples in chunks for their maximum."""
        return max(chunk.max() for chunk in chunks(self._ascending()))

    def _ascending(self) -> "LazyArray":
        rows = self._rows if isinstance(self._rows, range) else np.sort(self._rows)
        return LazyArray(self.source, rows, self._steps)

    def _transformed(self, samples: Array) -> Array:
        for step in self._steps:
            samples = step(samples)
        return samples


Samples: TypeAlias = Array | LazyArray


def _select(rows: range | Index, key: slice | Index) -> range | Index:
    if isinstance(key, slice):
        return rows[key]
    numbers = np.asarray(key)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(
            f"A lazy array is indexed by a slice or a vector of integers. Received: {key!r}."
        )
    count = len(rows)
    if numbers.size and not -count <= numbers.min() <= numbers.max() < count:
        raise IndexError(f"Samples are numbered 0 to {count - 1}. Received: {key!r}.")
    numbers = np.where(numbers < 0, numbers + count, numbers).astype(np.intp)
    return rows.start + rows.step * numbers if isinstance(rows, range) else rows[numbers]


def numbered(rows: slice | Index, count: int) -> Index:
    """Returns the numbers that a slice or an index selects of ``count`` samples."""
    return np.arange(*rows.indices(count)) if isinstance(rows, slice) else rows


def chunks(array: Samples) -> Iterator[Array]:
    """Yields an array in pieces of at most ``CHUNK_BYTES``."""
    sample = array.dtype.itemsize * math.prod(array.shape[1:])
    count = max(1, CHUNK_BYTES // max(1, sample))
    for start in range(0, len(array), count):
        yield array[start : start + count]


def mapped(array: Samples, step: Step) -> Samples:
    """Applies a function to samples, now or when they are read."""
    return array.map(step) if isinstance(array, LazyArray) else step(array)


def in_memory(arrays: Mapping[str, Samples]) -> dict[str, Array]:
    """Reads arrays that are not in memory yet."""
    return {name: array[:] for name, array in arrays.items()}


def loaded_if_small(arrays: Mapping[str, Samples]) -> Mapping[str, Samples]:
    """Reads arrays into memory, unless they take more than ``HELD_BYTES`` there."""
    lazy = sum(array.nbytes for array in arrays.values() if isinstance(array, LazyArray))
    return in_memory(arrays) if lazy <= HELD_BYTES else arrays
