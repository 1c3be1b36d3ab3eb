"""Loads data sets by name, from files and folders, or from arrays and pipelines of the caller.

A file holds arrays named ``<input>_train``, ``<input>_val``, ``<input>_test``, or ``<input>``,
where ``<input>`` is an input of the model, or ``x`` if it has only one. Labels have ``y`` in place
of the input, or ``y_<output>`` where the model has several outputs.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from exporter import datasets
from exporter.data.checks import check_values, checked_digest
from exporter.data.dataset import Dataset
from exporter.data.files import left_on_disk, read_file, read_keras
from exporter.data.folders import read_folder
from exporter.data.lazy import Samples
from exporter.data.pipelines import PARTS, PIPELINE, is_pipeline, read_head, source_after
from exporter.data.split import ENDS, LABELS, ONLY_INPUT, PART_NAMES, Split, divide
from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import DataError, brief, did_you_mean

HELD_SAMPLES = 10_000
"""Most samples of a lazy validation or test part, and of the head of a pipeline."""

_LAYOUT = (
    "Arrays are named INPUT_train, INPUT_val and INPUT_test, or INPUT alone, where INPUT is an "
    "input of the model, or x if it has only one; labels have y in its place, or y_OUTPUT."
)


def load_dataset(source: Any) -> Dataset:
    """Loads a data set.

    Args:
        source: ``"digits"``, ``"none"``, a path to ``.npz`` or ``.npy``, or to a folder of images
            with a folder for each class; the name of a Keras data set (``mnist`` or
            ``fashion_mnist``); arrays by the names they would have in a file; a
            ``tf.data.Dataset`` to train on, or several of them as ``train``, ``validation`` and
            ``test``. A pipeline yields single samples, ``x`` or ``(x, y)``, each a tensor or
            tensors by name. Missing validation and test parts are the first samples of ``train``,
            which must then begin alike each time. A data set is returned as it is.

    Raises:
        DataError: If it cannot be read, is empty, or holds no finite numbers.
    """
    if isinstance(source, Dataset):
        return source
    if is_pipeline(source):
        source = {"train": source}
    if isinstance(source, Mapping):
        if any(map(is_pipeline, source.values())):
            return _from_pipelines(source)
        return _from_arrays("arrays", {name: _as_array(name, a) for name, a in source.items()})
    if not isinstance(source, (str, PathLike)):
        raise DataError(
            "Data must be a name, a path, arrays by name such as {'x': x, 'y': y}, or a "
            f"tf.data.Dataset. Received: {type(source).__name__}."
        )
    source = str(source)
    if source == NO_DATA:
        return Dataset(NO_DATA, None, None, None, "none")
    if source != DIGITS and Path(source).is_dir():
        return _from_parts(source, *read_folder(Path(source)))
    return _from_arrays(source, _read(source))


def _as_array(name: str, values: Any) -> Samples:
    """Returns what arrays of other libraries, or lists, hold."""
    if not isinstance(getattr(values, "dtype", None), np.dtype):
        try:
            values = np.asarray(values)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"Array {name!r} must be an array, or lists of one shape. Received: "
                f"{type(values).__name__}: {brief(error)}"
            ) from error
    return left_on_disk(values)


def _read(source: str) -> dict[str, Samples]:
    if source == DIGITS:
        with resources.as_file(resources.files(datasets) / "mnist10k.npz") as path:
            return read_file(path)
    path = Path(source)
    if path.exists():
        return read_file(path)
    if source in KERAS_DATASETS:
        return read_keras(source)
    known = [DIGITS, NO_DATA, *KERAS_DATASETS]
    raise DataError(
        f"Data must be a file, a folder or one of {', '.join(known)}. "
        f"Received: {source!r}, not found.{did_you_mean(source, known)}"
    )


def _from_arrays(source: str, arrays: Mapping[str, Samples]) -> Dataset:
    if not arrays:
        raise DataError(f"Data {source!r} hold no array.")
    parts: dict[str, dict[str, Samples]] = {"train": {}, "validation": {}, "test": {}, "": {}}
    for name, array in arrays.items():
        check_values(f"Array {name!r} of data {source!r}", array)
        match = re.fullmatch(r"(.+)_(train|val|validation|test)", name)
        stem, part = (match[1], PART_NAMES[match[2]]) if match else (name, "")
        parts[part][stem] = array
    if parts[""] and any(stems for part, stems in parts.items() if part):
        ended = [f"{stem}{end}" for stem in (ONLY_INPUT, LABELS) for end in ENDS]
        raise DataError(
            f"Data {source!r} mix arrays with and without _train/_val/_test: {sorted(arrays)}. "
            f"Name all of them alike. {_LAYOUT}{did_you_mean(list(parts['']), ended)}"
        )
    splits = {
        part: _as_split(source, stems, sorted(arrays)) for part, stems in parts.items() if stems
    }
    if "validation" in splits and "train" not in splits:
        raise DataError(
            f"Data {source!r} must have arrays _train where they have arrays _val. "
            f"Received: {sorted(arrays)}. {_LAYOUT}"
        )
    return _from_parts(source, splits, checked_digest(source, arrays))


def _as_split(source: str, stems: Mapping[str, Samples], names: Sequence[str]) -> Split:
    """Tells inputs from labels; ``names`` are those of all arrays."""
    inputs: dict[str, Samples] = {}
    labels: dict[str, Samples] = {}
    for stem, array in stems.items():
        is_label = stem == LABELS or stem.startswith(f"{LABELS}_")
        (labels if is_label else inputs)[stem.removeprefix(f"{LABELS}_")] = array
    if not inputs:
        raise DataError(f"Data {source!r} hold labels and no inputs: {names}. {_LAYOUT}")
    counts = {stem: len(array) for stem, array in stems.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"Data {source!r} must have as many samples everywhere. Received: {counts}. {_LAYOUT}"
        )
    return Split(inputs, labels)


def _from_parts(
    source: str, parts: Mapping[str, Split], digest: str, notes: tuple[str, ...] = ()
) -> Dataset:
    """Divides arrays, and limits validation and test parts that are not in memory."""
    train, *held_out = divide(parts)
    for index, name in enumerate(("validation", "test")):
        part = held_out[index]
        if part is not None and part.is_lazy and len(part) > HELD_SAMPLES:
            held_out[index] = part.take(slice(HELD_SAMPLES))
            used = f"{name}: the first {HELD_SAMPLES:,} of {len(part):,} samples are used"
            notes = (*notes, used)
    validation, test = held_out
    return Dataset(source, train, validation, test, digest, notes)


def _from_pipelines(pipelines: Mapping[str, Any]) -> Dataset:
    known = set(pipelines) <= set(PARTS) and all(map(is_pipeline, pipelines.values()))
    if not known or not ("train" in pipelines or set(pipelines) == {"test"}):
        kinds = {name: type(value).__name__ for name, value in pipelines.items()}
        raise DataError(
            "Pipelines are given as train, validation and test, each a tf.data.Dataset; train may "
            f"be alone, and so may test. Received: {kinds}."
        )
    heads = {part: read_head(part, pipelines[part], HELD_SAMPLES) for part in pipelines}
    train, validation, test = divide({p: head.split for p, head in heads.items()}, shuffle=False)
    stream = None
    if train is not None:
        skipped = len(heads["train"].split) - len(train)
        stream = source_after("train", pipelines["train"], heads["train"], skipped)
    notes = tuple(
        f"{part}: the first {len(head.split):,} samples of the pipeline are looked at"
        + (", training goes on to the others" if part == "train" else "")
        for part, head in heads.items()
        if not head.ended
    )
    arrays = {
        f"{part} {kind} {name}": array
        for part, head in heads.items()
        for kind, named in (("x", head.split.inputs), ("y", head.split.labels))
        for name, array in named.items()
    }
    return Dataset(
        PIPELINE, train, validation, test, checked_digest(PIPELINE, arrays), notes, stream
    )
