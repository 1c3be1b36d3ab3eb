"""Changes images of a batch at random, in ways that keep their labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.data import Split
from exporter.errors import DataError
from exporter.graph.network import Network

SHIFT = 8
"""Images are shifted by up to their size over this number: 4 of 32 pixels, as is usual."""


def check_augmentation(augment: str, network: Network, train: Split) -> None:
    """Raises a DataError if there are no images to change, or labels that would have to change too.

    Args:
        augment: The option ``augment``.
        network: The model to be trained.
        train: Its training data.
    """
    if augment == "none":
        return
    shapes = {info.name: info.shape for info in network.inputs}
    if not any(len(shape) == 4 for shape in shapes.values()):
        raise DataError(
            f"augment {augment!r} changes images, inputs of shape (height, width, channels). "
            f"Received: inputs of shapes {[list(shape[1:]) for shape in shapes.values()]}."
        )
    placed = [name for name, array in train.labels.items() if len(array.shape) > 2]
    placed += [info.name for info in network.outputs if len(info.shape) > 2]
    if placed:
        raise DataError(
            f"augment {augment!r} keeps labels as they are, which must not belong to places in an "
            f"image. Received: {', '.join(dict.fromkeys(placed))} with a label for each place. "
            "Give a tf.data pipeline that changes both."
        )


def augmented(
    inputs: Mapping[str, NDArray[Any]], augment: str, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Mirrors or shifts each image of a batch, by chance and on its own.

    Args:
        inputs: Arrays by input name; those of shape (samples, height, width, channels) are images.
        augment: ``"flip"`` mirrors every other image from left to right, ``"shift"`` moves it by up
            to an eighth of its size, its edge being mirrored; ``"flip+shift"`` does both.
        rng: Decides for all inputs alike, so that a pair of images stays one.
    """
    samples = len(next(iter(inputs.values())))
    mirrored = rng.random(samples) < 0.5
    across, down = rng.uniform(-1, 1, (2, samples))
    changed = dict(inputs)
    for name, array in inputs.items():
        if array.ndim == 4 and "flip" in augment:
            changed[name] = np.where(mirrored[:, None, None, None], array[:, :, ::-1], array)
        if array.ndim == 4 and "shift" in augment:
            changed[name] = _shifted(changed[name], down, across)
    return changed


def _shifted(
    images: NDArray[Any], down: NDArray[np.float64], across: NDArray[np.float64]
) -> NDArray[Any]:
    """Moves images by parts of the largest shift, -1 to 1."""
    _, height, width, _ = images.shape
    rows = _mirrored(np.arange(height) + _pixels(down, height)[:, None], height)
    columns = _mirrored(np.arange(width) + _pixels(across, width)[:, None], width)
    samples = np.arange(len(images))[:, None, None]
    moved: NDArray[Any] = images[samples, rows[:, :, None], columns[:, None, :]]
    return moved


def _pixels(parts: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    return np.rint(parts * (size // SHIFT)).astype(np.int64)


def _mirrored(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Reflects places outside at the edge, which is not repeated."""
    inside = np.abs(places)
    reflected: NDArray[np.int64] = np.minimum(inside, 2 * (size - 1) - inside)
    return reflected
