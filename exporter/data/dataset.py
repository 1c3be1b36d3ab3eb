"""Defines a data set: its parts, and all of its training data in batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.card import Normalization
from exporter.data.batches import ArraySource, BatchSource
from exporter.data.pipelines import PipelineSource
from exporter.data.split import Split


@dataclass(frozen=True)
class Dataset:
    """Checked arrays in parts.

    Attributes:
        train: Part for training and calibration, the first samples of a pipeline; may be None.
        validation: Part that models are selected by; may be None.
        test: Part that is only reported on; None where data are ``"none"``.
        digest: Hash of all arrays.
        notes: Choices made for the user, one line each.
        stream: The training pipeline, if there is one.
        normalization: Scaling of the given values to the model's, by input; empty before the data
            set is fitted to a model.
    """

    name: str
    train: Split | None
    validation: Split | None
    test: Split | None
    digest: str
    notes: tuple[str, ...] = ()
    stream: PipelineSource | None = None
    normalization: Mapping[str, Normalization] = field(default_factory=dict)

    @property
    def source(self) -> BatchSource | None:
        """All training data in batches; None if there is no training part."""
        return self.stream or (None if self.train is None else ArraySource(self.train))

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def map(self, step: Callable[[Split], Split]) -> "Dataset":
        """Applies a function to every part, and to every batch of a pipeline."""
        parts: dict[str, Any] = {name: step(part) for name, part in self.parts.items()}
        stream = None if self.stream is None else self.stream.map(step)
        return replace(self, **parts, stream=stream)
