"""Ranks for what the user can afford: parameters, MACs, bytes, latency, accuracy.

Parameters and MACs are allocated directly, by the knapsack. The others are searched for: bytes and
latency by exporting models of the planned shapes and measuring them, accuracy by evaluating on the
validation data.
"""

from collections.abc import Mapping
from typing import Any

from exporter.data import Dataset, Split, in_memory, loaded_if_small
from exporter.data.metrics import is_classes, is_one_hot, task_metric
from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.graph.runner import predict_in_batches
from exporter.recipe import Recipe
from exporter.verification.probes import BATCH_SIZE


def check_budget(recipe: Recipe, dataset: Dataset | None) -> None:
    """Raises a DataError if ``max_drop`` is asked for without labelled validation data."""
    if recipe.goal.max_drop is not None:
        labelled(dataset.validation if dataset else None, recipe)


def accuracy_drop(baseline: Network, compressed: Network, dataset: Dataset) -> float:
    """Returns how much accuracy is lost on the validation part, 0 to 1, of the worst output."""
    validation = dataset.validation
    if validation is None:
        return 0.0
    inputs, labels = loaded_if_small(validation.inputs), _classes(validation)
    return accuracy(baseline, inputs, labels) - accuracy(compressed, inputs, labels)


def labelled(validation: Split | None, recipe: Recipe) -> tuple[Any, Mapping[str, Any]]:
    """Returns the inputs and the classes that ``max_drop`` is held against.

    Raises:
        DataError: If there are no labelled validation data.
    """
    labels = _classes(validation) if validation else {}
    if validation is None or not labels:
        raise DataError(
            "max_drop is held against the accuracy on validation data. Received: data "
            f"{recipe.source.data!r} without a labelled training part. Give x_train and y_train, "
            "with classes as labels."
        )
    return validation.inputs, labels


def _classes(split: Split) -> dict[str, Any]:
    labels = in_memory(split.labels)
    return {n: a for n, a in labels.items() if is_classes(a) or is_one_hot(a)}


def accuracy(network: Network, inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> float:
    """Returns the accuracy of the worst output."""
    fixed = network.fixed_batch
    count = len(next(iter(inputs.values())))
    kept = count // fixed * fixed if fixed else count
    predictions = predict_in_batches(network.runner(), inputs, fixed or BATCH_SIZE, kept)
    return min(task_metric(predictions[n], array[:kept]).value for n, array in labels.items())
