"""Divides a data set into parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from exporter.data.lazy import Index, LazyArray, Samples, in_memory
from exporter.screen import fits_screen

ONLY_INPUT = "x"
"""Name of the input of a model that has only one."""

LABELS = "y"

PART_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""Names of parts in files and folders."""

ENDS = ("_train", "_val", "_test")
"""Of the names of arrays, usually; ``_validation`` will do as well."""

TEST_PART = 0.2
VALIDATION_PART = 0.1
SPLIT_SEED = 0


@fits_screen
@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        inputs: Arrays by input name, samples along the first axis.
        labels: Labels by output name, ``y`` for the only output; empty if there are none.
    """

    inputs: Mapping[str, Samples]
    labels: Mapping[str, Samples] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: slice | Index) -> "Split":
        """Returns the samples at ``index``; lazy arrays stay lazy."""
        inputs, labels = (
            {n: a.take(index) if isinstance(a, LazyArray) else a[index] for n, a in arrays.items()}
            for arrays in (self.inputs, self.labels)
        )
        return Split(inputs, labels)

    def read(self) -> "Split":
        """Reads all arrays into memory."""
        return Split(in_memory(self.inputs), in_memory(self.labels))

    @property
    def is_lazy(self) -> bool:
        """Whether any array is not in memory."""
        arrays = [*self.inputs.values(), *self.labels.values()]
        return any(isinstance(array, LazyArray) for array in arrays)


def shuffled(count: int) -> Index:
    """Returns a random order of samples, the same every time."""
    return np.random.default_rng(SPLIT_SEED).permutation(count)


def divide(
    parts: Mapping[str, Split], *, shuffle: bool = True
) -> tuple[Split | None, Split | None, Split]:
    """Divides samples into disjoint train, validation and test parts.

    The given parts are ``train``, ``validation`` and ``test``, or one with an empty name. Missing
    parts are random samples of the training part, or its first samples without ``shuffle``.
    """
    if "test" in parts and "train" not in parts:
        return None, None, parts["test"]
    rest = parts.get("") or parts["train"]
    validation, test = parts.get("validation"), parts.get("test")

    def hold_out(whole: Split, count: int) -> tuple[Split, Split]:
        order = (shuffled if shuffle else np.arange)(len(whole))
        return whole.take(order[count:]), whole.take(order[:count])

    if test is None:
        if len(rest) < 2:
            return None, None, rest
        rest, test = hold_out(rest, max(1, round(TEST_PART * len(rest))))
    if validation is None and (count := round(VALIDATION_PART * len(rest))):
        rest, validation = hold_out(rest, count)
    return rest, validation, test
