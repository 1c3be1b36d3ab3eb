"""Makes model cards, and checks them against a model's inputs and outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.card import ModelCard, Normalization
from exporter.errors import InputError, RecipeError, did_you_mean
from exporter.inputs import checked_path

if TYPE_CHECKING:
    from exporter.graph.signature import TensorInfo


def make_card(
    normalization: Mapping[str, Normalization],
    outputs: Sequence["TensorInfo"],
    *,
    labels: str | None = None,
    description: str | None = None,
) -> ModelCard:
    """Makes the card of a model from the normalization by input, and a path of labels.

    The labels are for the output that has as many classes.

    Raises:
        RecipeError: If the file cannot be read, or fits no output or several.
    """
    if labels is None:
        return ModelCard(description, normalization)
    names = read_labels(labels)
    classes = _classes(outputs)
    fitting = [name for name, count in classes.items() if count == len(names)]
    if len(fitting) != 1:
        raise RecipeError(
            f"labels must be as many as the classes of one output ({_listed(classes)}). "
            f"Received: {len(names)} labels in {labels!r}, which fit {len(fitting)} outputs."
        )
    return ModelCard(description, normalization, {fitting[0]: names})


def read_labels(path: str) -> tuple[str, ...]:
    """Reads a text file with one label in each line; a RecipeError tells what is wrong with it."""
    try:
        text = Path(checked_path(path)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"labels must be a text file in UTF-8, one label a line. Received: {path!r}: {error}."
        ) from error
    labels = tuple(line.strip() for line in text.rstrip().split("\n"))
    if "" in labels:
        raise RecipeError(
            "labels must be a text file with a label in each line. "
            f"Received: {path!r}, whose line {labels.index('') + 1} is empty."
        )
    return labels


def check_card(
    card: ModelCard, inputs: Sequence["TensorInfo"], outputs: Sequence["TensorInfo"]
) -> None:
    """Checks that a card fits a model with these inputs and outputs.

    Raises:
        InputError: If the card names other inputs or outputs, or another number of classes.
    """
    known = [info.name for info in inputs]
    if unknown := sorted(set(card.normalization) - set(known)):
        raise InputError(
            f"The card's normalization must be by input, {', '.join(known)}. "
            f"Received: {', '.join(unknown)}.{did_you_mean(unknown, known)}"
        )
    classes = _classes(outputs)
    for name, labels in card.labels.items():
        if classes.get(name) != len(labels):
            raise InputError(
                "The card's labels must be as many as the classes of their output "
                f"({_listed(classes)}). Received: {len(labels)} for {name!r}."
            )


def _classes(outputs: Sequence["TensorInfo"]) -> dict[str, int | None]:
    return {each.name: each.shape[-1] if len(each.shape) > 1 else None for each in outputs}


def _listed(classes: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in classes.items())
