"""Data sets: the embedded digits, files, Keras data sets by name; splits and checks.

A file holds arrays by name: ``<input>_train``, ``<input>_test``, or ``<input>`` alone, where
``<input>`` is an input of the model, or ``x`` if it has only one. Labels are ``y`` in place of an
input, or ``y_<output>`` where the model has several outputs. The layout of Keras' ``mnist.npz``
(``x_train``, ``y_train``, ``x_test``, ``y_test``) is the plainest case.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter import datasets
from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import DataError, brief

Array = NDArray[Any]

ONLY_INPUT = "x"
"""Stands for the input of a model that has one."""

LABELS = "y"

TEST_PART = 0.2
VALIDATION_PART = 0.1
_SPLIT_SEED = 0

UINT8_MAX = 255


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        inputs: Arrays by input name, samples along the first axis.
        labels: Labels by output name, ``y`` standing for the only one; empty if there are none.
    """

    inputs: Mapping[str, Array]
    labels: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: "slice | NDArray[np.intp]") -> "Split":
        """Returns the samples at ``index``."""
        return Split(
            {name: array[index] for name, array in self.inputs.items()},
            {name: array[index] for name, array in self.labels.items()},
        )


@dataclass(frozen=True)
class Dataset:
    """Arrays, checked and split.

    Attributes:
        name: What the user asked for.
        train: For training and calibration; None if the file has none.
        validation: Picks models; None if the file has no training part.
        test: Picks nothing, is only reported on; None where data are ``"none"``.
        digest: Hash of all arrays.
        notes: Choices made for the user, each worth a line.
    """

    name: str
    train: Split | None
    validation: Split | None
    test: Split | None
    digest: str
    notes: tuple[str, ...] = ()


def load_dataset(source: str | Mapping[str, Array]) -> Dataset:
    """Loads a data set.

    Args:
        source: ``"digits"``, ``"none"``, a path to ``.npz`` or ``.npy``, the name of a Keras data
            set (``mnist`` or ``fashion_mnist``), or arrays by the names they would have in a file.

    Raises:
        DataError: If it cannot be read, is empty, or holds what no model takes.
    """
    if isinstance(source, Mapping):
        return _from_arrays("arrays", source)
    if source == NO_DATA:
        return Dataset(NO_DATA, None, None, None, "none")
    if source == DIGITS:
        with resources.as_file(resources.files(datasets) / "mnist10k.npz") as path:
            return _from_arrays(source, _read(path))
    if source in KERAS_DATASETS and not Path(source).exists():
        return _from_arrays(source, _read_keras(source))
    path = Path(source)
    if not path.exists():
        known = ", ".join([DIGITS, NO_DATA, *KERAS_DATASETS])
        raise DataError(f"Data must be a file or one of {known}. Received: {source!r}, not found.")
    return _from_arrays(source, _read(path))


def _read(path: Path) -> dict[str, Array]:
    if path.suffix not in {".npz", ".npy"} or not path.is_file():
        raise DataError(f"Data must be a .npz or .npy file. Received: {str(path)!r}.")
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged file open.
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {ONLY_INPUT: loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # NumPy, zipfile and its codecs raise whatever they run into.
        # NumPy takes any unknown content for pickled objects, and advises to trust it.
        reason = "it holds objects, or no arrays." if "pickle" in str(error) else brief(error)
        raise DataError(
            f"{str(path)!r} cannot be read: {reason} Arrays must be saved by np.save or "
            "np.savez with a numeric dtype, not object."
        ) from error


def _read_keras(name: str) -> dict[str, Array]:
    """Reads the file where Keras keeps it, whichever way it came there, or has Keras fetch it."""
    import keras

    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    place = home / "datasets" / f"{name}.npz"
    if place.exists():
        return _read(place)
    try:
        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises bare Exceptions when a download fails.
        raise DataError(
            f"Keras could not download {name!r}: {brief(error)} Without a network, place an .npz "
            f"with x_train, y_train, x_test and y_test at {place}, or give its path as data."
        ) from error
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


def _from_arrays(source: str, arrays: Mapping[str, Array]) -> Dataset:
    if not arrays:
        raise DataError(f"Data {source!r} hold no array.")
    for name, array in arrays.items():
        _check_values(source, name, array)
    parts: dict[str, dict[str, Array]] = {"train": {}, "test": {}, "": {}}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.+)_(train|test)", name)
        stem, part = (match[1], match[2]) if match else (name, "")
        parts[part][stem] = array
    splits = {part: _as_split(source, stems) for part, stems in parts.items() if stems}
    if "" in splits and len(splits) > 1:
        raise DataError(
            f"Data {source!r} mix arrays with and without _train/_test: {sorted(arrays)}. "
            "Name all of them alike."
        )
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    train, validation, test = _divide(splits)
    return Dataset(source, train, validation, test, digest.hexdigest())


def _check_values(source: str, name: str, array: Array) -> None:
    where = f"Array {name!r} of data {source!r}"
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} must be numeric. Received: dtype {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{where} must hold samples. Received: shape {array.shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{where} must be finite. Received: {bad} NaN or infinite values.")


def _as_split(source: str, stems: Mapping[str, Array]) -> Split:
    def is_label(stem: str) -> bool:
        return stem == LABELS or stem.startswith(f"{LABELS}_")

    inputs = {stem: array for stem, array in stems.items() if not is_label(stem)}
    labels = {
        stem.removeprefix(f"{LABELS}_"): array for stem, array in stems.items() if is_label(stem)
    }
    if not inputs:
        raise DataError(f"Data {source!r} hold labels and no inputs: {sorted(stems)}.")
    counts = {stem: len(array) for stem, array in stems.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"Data {source!r} must have as many samples everywhere. Received: {counts}."
        )
    return Split(inputs, labels)


def _divide(splits: Mapping[str, Split]) -> tuple[Split | None, Split | None, Split]:
    """Makes train, validation and test parts, each sample in one of them."""
    if "test" in splits and "train" not in splits:
        return None, None, splits["test"]
    whole = splits.get("") or splits["train"]
    if not whole.labels and "test" not in splits:
        return whole, None, whole  # Inputs alone: calibration data, which parity is checked on too.
    if "test" in splits:
        rest, test = whole, splits["test"]
    else:
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(whole))
        count = max(1, round(TEST_PART * len(whole)))
        if len(whole) - count < 1:
            return None, None, whole
        rest, test = whole.take(order[count:]), whole.take(order[:count])
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(rest))
    count = round(VALIDATION_PART * len(rest))
    if not count:
        return rest, None, test
    return rest.take(order[count:]), rest.take(order[:count]), test


def fit_to_model(
    dataset: Dataset,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    scaled_inside: bool = False,
) -> Dataset:
    """Names, shapes and scales a data set as a model takes it.

    Integer images in 0 to 255 become float in 0 to 1, unless the model rescales them itself. A
    trailing axis of one is added or dropped.

    Args:
        dataset: What ``load_dataset`` returned.
        inputs: The model's inputs, each with ``name``, ``shape`` (batch first) and ``dtype``.
        outputs: The model's outputs, likewise.
        scaled_inside: Whether the model has a layer that rescales or normalises its input.

    Raises:
        DataError: If names, shapes or labels do not fit; before any work.
    """
    if dataset.test is None:
        return dataset
    notes: list[str] = []

    def fit(split: Split | None) -> Split | None:
        if split is None:
            return None
        arrays = _by_input(dataset.name, split.inputs, inputs)
        fitted = {
            spec.name: _fit_array(dataset.name, spec, arrays[spec.name], scaled_inside, notes)
            for spec in inputs
        }
        return Split(fitted, _fit_labels(dataset.name, split.labels, outputs))

    fitted = replace(
        dataset,
        train=fit(dataset.train),
        validation=fit(dataset.validation),
        test=fit(dataset.test),
    )
    return replace(fitted, notes=tuple(dict.fromkeys(notes)))


def _by_input(source: str, arrays: Mapping[str, Array], inputs: Sequence[Any]) -> dict[str, Array]:
    names = [spec.name for spec in inputs]
    if len(names) == 1 and len(arrays) == 1 and ONLY_INPUT in arrays:
        return {names[0]: arrays[ONLY_INPUT]}
    missing = [name for name in names if name not in arrays]
    unused = sorted(set(arrays) - set(names))
    if missing or unused:
        raise DataError(
            f"Data {source!r} must hold one array for each model input, named {names} (or 'x' for "
            f"the only one). Received: {sorted(arrays)}."
        )
    return dict(arrays)


def _fit_array(
    source: str, spec: Any, array: Array, scaled_inside: bool, notes: list[str]
) -> Array:
    shape = tuple(spec.shape)[1:]
    if not _matches(array.shape[1:], shape):
        if _matches((*array.shape[1:], 1), shape):
            array = array[..., np.newaxis]
            notes.append(f"{spec.name}: an axis of one channel is added")
        elif array.shape[-1] == 1 and _matches(array.shape[1:-1], shape):
            array = array[..., 0]
            notes.append(f"{spec.name}: the axis of one channel is dropped")
        else:
            raise DataError(
                f"Input {spec.name!r} of the model takes samples of shape {_text(shape)}. "
                f"Received: data {source!r} with samples of shape {array.shape[1:]}. Give data of "
                "that shape, or 'none' to verify on random inputs alone."
            )
    if _is_image(array, spec):
        if scaled_inside:
            notes.append(
                f"{spec.name}: {array.dtype} images are left as they are, 0 to 255, "
                "for the model rescales them itself"
            )
        else:
            notes.append(f"{spec.name}: {array.dtype} images are scaled to [0, 1]")
            return (array / np.float32(UINT8_MAX)).astype(spec.dtype)
    return array.astype(spec.dtype)


def _matches(sizes: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(sizes) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(sizes, shape, strict=True)
    )


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _is_image(array: Array, spec: Any) -> bool:
    """Integers of at least two axes in 0 to 255, for an input that takes floats."""
    if array.dtype.kind not in "iu" or not str(spec.dtype).startswith("float"):
        return False
    if array.dtype == np.uint8:
        return True
    return array.ndim > 2 and array.min() >= 0 and array.max() <= UINT8_MAX


def _fit_labels(
    source: str, labels: Mapping[str, Array], outputs: Sequence[Any]
) -> dict[str, Array]:
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


def _fit_label(source: str, labels: Array, spec: Any) -> Array:
    """Classes as a vector of integers; anything else in the shape of the output."""
    shape = tuple(spec.shape)[1:]
    where = f"Labels of output {spec.name!r} in data {source!r}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "biu" and len(shape) == 1 and shape[0]:
        classes = max(2, shape[0])
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{where} must be classes within 0 and {classes - 1}. "
                f"Received: values from {low} to {high}."
            )
        return labels.astype(np.int64)
    if labels.ndim == 1 and shape == (1,):
        labels = labels[:, np.newaxis]
    if not _matches(labels.shape[1:], shape):
        raise DataError(
            f"{where} must be integer classes, or of shape {_text(shape)} like the output. "
            f"Received: {labels.dtype} of shape {labels.shape[1:]}."
        )
    return labels
