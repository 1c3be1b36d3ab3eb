"""Fits the names, shapes and scale of a data set to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.card import Normalization
from exporter.data.dataset import Dataset
from exporter.data.folders import ImageRows, fit_images
from exporter.data.lazy import LazyArray, Samples, Step, mapped
from exporter.data.split import LABELS, ONLY_INPUT, Split
from exporter.errors import DataError

UINT8_MAX = 255


def fit_to_model(
    dataset: Dataset, inputs: Sequence[Any], outputs: Sequence[Any], *, scaled_inside: bool = False
) -> Dataset:
    """Gives a data set the names, shapes and scales of a model.

    Each of the model's inputs and outputs has a ``name``, a ``shape`` (batch first) and a
    ``dtype``. Integer images in 0 to 255 become float in 0 to 1, unless a layer of the model
    rescales or normalises them (``scaled_inside``). A trailing axis of one is added or dropped.
    ``normalization`` of the result tells the scaling of each input of floats.

    Raises:
        DataError: If names, shapes or labels do not fit; before any work.
    """
    if not dataset.parts:
        return dataset
    source = dataset.name
    notes = dict.fromkeys(dataset.notes)  # Ordered and unique: each batch adds its notes again.

    def shape(part: Split) -> Split:
        arrays = _by_input(source, part.inputs, inputs)
        shaped = {
            spec.name: _shape_array(source, spec, arrays[spec.name], notes) for spec in inputs
        }
        return Split(shaped, _fit_labels(source, part.labels, outputs))

    shaped = dataset.map(shape)
    divisors: dict[str, int] = {}
    for spec in inputs:
        arrays = [part.inputs[spec.name] for part in shaped.parts.values()]
        if all(_is_image(array, spec) for array in arrays):
            scaling = "left as they are, 0 to 255, for the model rescales them itself"
            if not scaled_inside:
                scaling, divisors[spec.name] = "scaled to [0, 1]", UINT8_MAX
            notes[f"{spec.name}: {_stored_dtype(arrays[0])} images are {scaling}"] = None
    steps = {spec.name: _casting(spec.dtype, divisors.get(spec.name)) for spec in inputs}

    def scale(part: Split) -> Split:
        arrays = part.inputs.items()
        return replace(part, inputs={name: mapped(array, steps[name]) for name, array in arrays})

    normalization = {
        spec.name: Normalization(std=divisors.get(spec.name, 1))
        for spec in inputs
        if str(spec.dtype).startswith("float")
    }
    return replace(shaped.map(scale), notes=tuple(notes), normalization=normalization)


def _by_input(
    source: str, arrays: Mapping[str, Samples], inputs: Sequence[Any]
) -> Mapping[str, Samples]:
    names = [spec.name for spec in inputs]
    if len(names) == 1 and set(arrays) == {ONLY_INPUT}:
        return {names[0]: arrays[ONLY_INPUT]}
    if set(arrays) != set(names):
        raise DataError(
            f"Data {source!r} must hold one array for each model input, named {names} (or 'x' for "
            f"the only one). Received: {sorted(arrays)}."
        )
    return arrays


def _shape_array(source: str, spec: Any, array: Samples, notes: dict[str, None]) -> Samples:
    shape = tuple(spec.shape)[1:]
    if isinstance(array, LazyArray) and isinstance(array.source, ImageRows):
        array = fit_images(source, array, array.source, spec)
    if _matches(array.shape[1:], shape):
        return array
    if _matches((*array.shape[1:], 1), shape):
        notes[f"{spec.name}: an axis of one channel is added"] = None
        return mapped(array, lambda samples: samples[..., np.newaxis])
    if array.shape[-1] == 1 and _matches(array.shape[1:-1], shape):
        notes[f"{spec.name}: the axis of one channel is dropped"] = None
        return mapped(array, lambda samples: samples[..., 0])
    raise DataError(
        f"Input {spec.name!r} of the model takes samples of shape {_text(shape)}. "
        f"Received: data {source!r} with samples of shape {array.shape[1:]}. Give data of "
        "that shape, or 'none' to verify on random inputs alone."
    )


def _matches(sizes: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(sizes) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(sizes, shape, strict=True)
    )


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _is_image(array: Samples, spec: Any) -> bool:
    """Tells whether samples are integers of at least two axes in 0 to 255, for a float input."""
    dtype = _stored_dtype(array)
    if dtype.kind not in "iu" or not str(spec.dtype).startswith("float"):
        return False
    if dtype == np.uint8:
        return True
    return bool(array.ndim > 2 and array.min() >= 0 and array.max() <= UINT8_MAX)


def _stored_dtype(array: Samples) -> np.dtype[Any]:
    """Returns the type of stored values: integers in image files, though resizing interpolates."""
    from_files = isinstance(array, LazyArray) and isinstance(array.source, ImageRows)
    return np.dtype(np.uint8) if from_files else array.dtype


def _casting(dtype: Any, divisor: int | None) -> Step:
    if divisor is None:
        return lambda samples: samples.astype(dtype)
    return lambda samples: (samples / np.float32(divisor)).astype(dtype)


def _fit_labels(
    source: str, labels: Mapping[str, Samples], outputs: Sequence[Any]
) -> dict[str, Samples]:
    names = [spec.name for spec in outputs]
    if len(names) == 1 and set(labels) == {LABELS}:
        labels = {names[0]: labels[LABELS]}
    unknown = sorted(set(labels) - set(names))
    if unknown:
        wanted = [f"{LABELS}_{name}" for name in names]
        raise DataError(
            f"Labels of data {source!r} must be named {wanted} (or 'y' for the only output). "
            f"Received: {unknown}."
        )
    return {
        spec.name: _fit_label(source, labels[spec.name], spec)
        for spec in outputs
        if spec.name in labels
    }


def _fit_label(source: str, labels: Samples, spec: Any) -> Samples:
    """Gives labels the shape of an output, or (samples,) where they are classes."""
    shape = tuple(spec.shape)[1:]
    where = f"Labels of output {spec.name!r} in data {source!r}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = mapped(labels, lambda rows: rows[:, 0])
    if labels.ndim == 1 and labels.dtype.kind in "biu" and len(shape) == 1 and shape[0]:
        classes = max(2, shape[0])
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{where} must be classes within 0 and {classes - 1}. "
                f"Received: values from {low} to {high}."
            )
        return mapped(labels, lambda rows: rows.astype(np.int64))
    if labels.ndim == 1 and shape == (1,):
        labels = mapped(labels, lambda rows: rows[:, np.newaxis])
    if not _matches(labels.shape[1:], shape):
        raise DataError(
            f"{where} must be integer classes, or of shape {_text(shape)} like the output. "
            f"Received: {labels.dtype} of shape {labels.shape[1:]}."
        )
    return labels
