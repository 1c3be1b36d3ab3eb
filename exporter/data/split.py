"""A part of a data set, and how a whole is divided into parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from exporter.data.lazy import Index, LazyArray, Samples, in_memory

ONLY_INPUT = "x"
"""Stands for the input of a model that has one."""

LABELS = "y"

TEST_PART = 0.2
VALIDATION_PART = 0.1
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        inputs: Arrays by input name, samples along the first axis.
        labels: Labels by output name, ``y`` standing for the only one; empty if there are none.
    """

    inputs: Mapping[str, Samples]
    labels: Mapping[str, Samples] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: slice | Index) -> "Split":
        """Returns the samples at ``index``; lazy arrays stay lazy."""

        def taken(array: Samples) -> Samples:
            return array.take(index) if isinstance(array, LazyArray) else array[index]

        return Split(
            {name: taken(array) for name, array in self.inputs.items()},
            {name: taken(array) for name, array in self.labels.items()},
        )

    def read(self) -> "Split":
        """Returns all of it in memory."""
        return Split(in_memory(self.inputs), in_memory(self.labels))

    @property
    def is_lazy(self) -> bool:
        """Whether something of it is not in memory."""
        arrays = [*self.inputs.values(), *self.labels.values()]
        return any(isinstance(array, LazyArray) for array in arrays)


def shuffled(count: int) -> Index:
    """Returns the order in which samples are divided; the same every time."""
    return np.random.default_rng(SPLIT_SEED).permutation(count)


def divide(
    parts: Mapping[str, Split], *, shuffle: bool = True
) -> tuple[Split | None, Split | None, Split]:
    """Makes train, validation and test parts, each sample in one of them.

    Args:
        parts: ``train``, ``validation`` and ``test``, or one of no name. What is missing is taken
            from the training part.
        shuffle: Whether samples are taken from all over it; otherwise they are its first.
    """
    order_of = shuffled if shuffle else np.arange
    if "test" in parts and "train" not in parts:
        return None, None, parts["test"]
    whole = parts.get("") or parts["train"]
    if not whole.labels and "test" not in parts:
        # Inputs alone: calibration data, which parity is checked on too.
        return whole, parts.get("validation"), whole
    if "test" in parts:
        rest, test = whole, parts["test"]
    else:
        order = order_of(len(whole))
        count = max(1, round(TEST_PART * len(whole)))
        if len(whole) - count < 1:
            return None, None, whole
        rest, test = whole.take(order[count:]), whole.take(order[:count])
    if "validation" in parts:
        return rest, parts["validation"], test
    order = order_of(len(rest))
    count = round(VALIDATION_PART * len(rest))
    if not count:
        return rest, None, test
    return rest.take(order[count:]), rest.take(order[:count]), test
