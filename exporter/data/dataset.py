"""A data set: its parts, and all of its training data in batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from exporter.card import Normalization
from exporter.data.batches import ArraySource, BatchSource
from exporter.data.pipelines import PipelineSource
from exporter.data.split import Split


@dataclass(frozen=True)
class Dataset:
    """Arrays, checked and split.

    Attributes:
        name: What the user asked for.
        train: For training and calibration; None if there is none. Of a pipeline, its first
            samples.
        validation: Picks models; None if there is no training part.
        test: Picks nothing, is only reported on; None where data are ``"none"``.
        digest: Hash of all arrays.
        notes: Choices made for the user, each worth a line.
        stream: The training pipeline, if there is one.
        normalization: How the values that were given became those that the model takes, by input;
            empty before the data set is fitted to a model.
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
        """All of the training data, in batches; None if there is no training part."""
        if self.stream is not None:
            return self.stream
        return None if self.train is None else ArraySource(self.train)

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def map(self, step: Callable[[Split], Split]) -> "Dataset":
        """Applies a function to every part, and to every batch of a pipeline."""
        parts = {name: step(part) for name, part in self.parts.items()}
        return replace(
            self,
            train=parts.get("train"),
            validation=parts.get("validation"),
            test=parts.get("test"),
            stream=None if self.stream is None else self.stream.map(step),
        )
