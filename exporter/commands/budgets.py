"""Ranks for what the user can afford: parameters, MACs, bytes, latency, accuracy.

Parameters and MACs are allocated directly, by the knapsack. The others are searched for: bytes and
latency by exporting models of the planned shapes and measuring them, accuracy by evaluating on the
validation data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.data import Dataset, Task, in_memory, loaded_if_small
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.runner import predict_whole_batches
from exporter.recipe import Recipe
from exporter.targets import TARGETS
from exporter.verification.probes import BATCH_SIZE


@dataclass(frozen=True)
class LabelledClasses:
    """Samples with labels of classes, which accuracy is measured on."""

    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    tasks: Mapping[str, Task]

    @classmethod
    def of(cls, dataset: Dataset | None) -> "LabelledClasses | None":
        """Takes the validation part of a data set; returns None if it has no classes."""
        part = dataset.validation if dataset else None
        if dataset is None or part is None:
            return None
        classes = {n: a for n, a in part.labels.items() if dataset.tasks[n].classes}
        labels = in_memory(classes)
        return cls(loaded_if_small(part.inputs), labels, dataset.tasks) if labels else None

    def accuracy(self, network: Network) -> float:
        """Returns the accuracy of the worst output."""
        runner, fixed = network.runner(), network.fixed_batch
        predictions = predict_whole_batches(runner, self.inputs, fixed, BATCH_SIZE)
        return min(
            self.tasks[name].metric(predictions[name], array[: len(predictions[name])]).value
            for name, array in self.labels.items()
        )


def labelled(dataset: Dataset | None, recipe: Recipe) -> LabelledClasses:
    """Returns the samples that ``max_drop`` is held against.

    Raises:
        DataError: If there are no labelled validation data.
    """
    held = LabelledClasses.of(dataset)
    if held is None:
        raise DataError(
            "max_drop is held against the accuracy on validation data. Received: data "
            f"{recipe.source.data!r} without a labelled training part. Give x_train and y_train, "
            "with classes as labels."
        )
    return held


def check_budget(recipe: Recipe, dataset: Dataset | None) -> None:
    """Checks that accuracy and costs can be measured, if a recipe asks for that.

    Raises:
        DataError: If there are no labelled validation data for ``max_drop``.
        RecipeError: If the target needs what is not installed.
    """
    if recipe.goal.target is not None:
        TARGETS[recipe.goal.target].check()
    if recipe.goal.max_drop is not None:
        labelled(dataset, recipe)


def accuracy_drop(baseline: Network, compressed: Network, dataset: Dataset) -> float:
    """Returns how much accuracy is lost on the validation part, 0 to 1, of the worst output."""
    held = LabelledClasses.of(dataset)
    return held.accuracy(baseline) - held.accuracy(compressed) if held else 0.0
