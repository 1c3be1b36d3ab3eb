"""Fits the names, shapes, scales and labels of a data set to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.card import Normalization
from exporter.data.dataset import Dataset
from exporter.data.folders import ImageRows, fit_images
from exporter.data.lazy import LazyArray, Samples, Step, mapped
from exporter.data.scaling import UINT8_MAX, Scaling
from exporter.data.split import ENDS, LABELS, ONLY_INPUT, Split
from exporter.data.tasks import OutputHint, Task, fits, read_labels, shape_text
from exporter.errors import DataError, did_you_mean

LOOKED_AT = 256
"""Samples that tell what values an array holds."""


def fit_to_model(
    dataset: Dataset,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    hints: Mapping[str, OutputHint] | None = None,
) -> Dataset:
    """Gives a data set the names and shapes of a model, and its labels their meaning.

    Each of the model's inputs and outputs has a ``name``, a ``shape`` (batch first) and a
    ``dtype``. A trailing axis of one is added or dropped. The values of inputs stay as they are;
    see ``scaled``. ``hints`` tell more of outputs, by name.

    Raises:
        DataError: If names, shapes or labels do not fit; before any work.
    """
    if not dataset.parts:
        return dataset
    source = dataset.name
    notes = dict.fromkeys(dataset.notes)  # Ordered and unique: each batch adds its notes again.
    named = [_by_output(source, part, inputs, outputs) for part in dataset.parts.values()]
    tasks: dict[str, Task] = {}
    steps: dict[str, Step] = {}
    for spec in outputs:
        arrays = [labels[spec.name] for labels in named if spec.name in labels]
        if arrays:
            hint = (hints or {}).get(spec.name, OutputHint())
            where = f"Labels of output {spec.name!r} in data {source!r}"
            tasks[spec.name], steps[spec.name] = read_labels(where, arrays, spec.shape[1:], hint)
            if tasks[spec.name].first:
                notes[f"{spec.name}: classes are counted from {tasks[spec.name].first}"] = None

    def shape(part: Split) -> Split:
        arrays = _by_input(source, part, inputs, outputs)
        shaped = {
            spec.name: _shape_array(source, spec, arrays[spec.name], notes) for spec in inputs
        }
        labels = _by_output(source, part, inputs, outputs)
        return Split(shaped, {name: mapped(labels[name], steps[name]) for name in labels})

    shaped = dataset.map(shape)
    return replace(shaped, notes=tuple(notes), tasks=tasks)


def scaled(
    dataset: Dataset,
    inputs: Sequence[Any],
    scalings: Mapping[str, Scaling],
    label_scalings: Mapping[str, Scaling] | None = None,
) -> Dataset:
    """Scales the inputs of a data set that has the names and shapes of a model.

    They get the types of the model as well. Labels that are values are scaled where their scalings
    are given. ``normalization`` of the result tells the scaling of each input of floats.
    """
    if not dataset.parts:
        return dataset
    for spec in inputs:
        array = next(iter(dataset.parts.values())).inputs[spec.name]
        where = f"input {spec.name!r} of data {dataset.name!r}"
        scalings[spec.name].check(where, array.shape[-1])
    steps = {spec.name: _casting(spec.dtype, scalings[spec.name]) for spec in inputs}
    label_scalings = label_scalings or {}

    def scale(part: Split) -> Split:
        return Split(
            {name: mapped(array, steps[name]) for name, array in part.inputs.items()},
            {
                name: mapped(array, label_scalings[name]) if name in label_scalings else array
                for name, array in part.labels.items()
            },
        )

    normalization: dict[str, Normalization] = {
        spec.name: scalings[spec.name].normalization
        for spec in inputs
        if str(spec.dtype).startswith("float")
    }
    return replace(dataset.map(scale), normalization=normalization)


def _by_input(
    source: str, part: Split, inputs: Sequence[Any], outputs: Sequence[Any]
) -> Mapping[str, Samples]:
    names, arrays = [spec.name for spec in inputs], part.inputs
    if len(names) == 1 and set(arrays) == {ONLY_INPUT}:
        return {names[0]: arrays[ONLY_INPUT]}
    if set(arrays) != set(names):
        raise _misnamed(source, part, inputs, outputs)
    return arrays


def _shape_array(source: str, spec: Any, array: Samples, notes: dict[str, None]) -> Samples:
    shape = tuple(spec.shape)[1:]
    if isinstance(array, LazyArray) and isinstance(array.source, ImageRows):
        array = fit_images(source, array, array.source, spec)
    if fits(array.shape[1:], shape):
        return array
    if fits((*array.shape[1:], 1), shape):
        notes[f"{spec.name}: an axis of one channel is added"] = None
        return mapped(array, lambda samples: samples[..., np.newaxis])
    if array.shape[-1] == 1 and fits(array.shape[1:-1], shape):
        notes[f"{spec.name}: the axis of one channel is dropped"] = None
        return mapped(array, lambda samples: samples[..., 0])
    raise DataError(
        f"Input {spec.name!r} of the model takes samples of shape {shape_text(shape)}. "
        f"Received: data {source!r} with samples of shape {array.shape[1:]}. Give data of "
        "that shape, or 'none' to verify on random inputs alone."
    )


def holds_bytes(array: Samples, spec: Any) -> bool:
    """Tells whether samples for an input of floats are images, or the like, in 0 to 255.

    They are integers, or floats that exceed what a model of scaled images would be given. Flags of
    0 and 1 are none. The first samples tell.
    """
    dtype = stored_dtype(array)
    axes = 2 if dtype == np.uint8 else 3 if dtype.kind in "iu" else 4
    if not str(spec.dtype).startswith("float") or array.ndim < axes:
        return False
    head = array[:LOOKED_AT]
    return bool(head.min() >= 0 and 1 < head.max() <= UINT8_MAX)


def stored_dtype(array: Samples) -> np.dtype[Any]:
    """Returns the type of stored values: integers in image files, though resizing interpolates."""
    from_files = isinstance(array, LazyArray) and isinstance(array.source, ImageRows)
    return np.dtype(np.uint8) if from_files else array.dtype


def _casting(dtype: Any, scaling: Scaling) -> Step:
    return lambda samples: scaling(samples).astype(dtype)


def _by_output(
    source: str, part: Split, inputs: Sequence[Any], outputs: Sequence[Any]
) -> Mapping[str, Samples]:
    names, labels = [spec.name for spec in outputs], part.labels
    if len(names) == 1 and set(labels) == {LABELS}:
        return {names[0]: labels[LABELS]}
    if set(labels) - set(names):
        raise _misnamed(source, part, inputs, outputs)
    return labels


def _misnamed(source: str, part: Split, inputs: Sequence[Any], outputs: Sequence[Any]) -> DataError:
    names = [spec.name for spec in inputs]
    labels = [f"{LABELS}_{spec.name}" for spec in outputs]
    known = [*names, *labels, *[ONLY_INPUT] * (len(names) == 1), *[LABELS] * (len(labels) == 1)]
    given = [*part.inputs, *(n if n == LABELS else f"{LABELS}_{n}" for n in part.labels)]
    ended = [f"{name}{end}" for name in known for end in ("", *ENDS)]
    return DataError(
        f"Data {source!r} must hold one array for each model input, named {names} (or 'x' for the "
        f"only one), and may hold labels named {labels} (or 'y' for the only output), each with "
        f"{', '.join(ENDS)} at its end or all without. Received: {sorted(given)} (without these "
        f"ends).{did_you_mean([name for name in given if name not in known], ended)}"
    )
