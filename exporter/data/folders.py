"""Reads images in folders, one folder a class; decodes them when they are asked for."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data.lazy import Array, Index, LazyArray, numbered
from exporter.data.split import LABELS, ONLY_INPUT, PART_NAMES, Split, shuffled
from exporter.errors import DataError, brief
from exporter.inputs import check_unpacked

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""Names of files that Keras reads as images."""

CHANNELS = (1, 3, 4)

SHOWN_CLASSES = 10

_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class ImageRows:
    """Images in files; height, width and channels are None until they are fitted to a model."""

    files: Sequence[str]
    size: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Samples, height, width, channels; the last three may be None."""
        return (len(self.files), *(self.size or (None, None, None)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Floating point once images are resized, since that interpolates."""
        return np.dtype(np.float32 if self.size else np.uint8)

    def read(self, rows: slice | Index) -> Array:
        """Decodes images, with values in 0 to 255."""
        files = [self.files[number] for number in numbered(rows, len(self.files))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self._decode, files))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), self.dtype)

    def _decode(self, file: str) -> Array:
        import tensorflow as tf

        if self.size is None:
            raise DataError(f"Images have no size before they are fitted to a model: {file!r}.")
        height, width, channels = self.size
        try:
            _check_pixels(Path(file))
            content = Path(file).read_bytes()
            if content.startswith(_JPEG):
                # As Pillow decodes it; TensorFlow's default is faster, and less exact.
                image = tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")
            else:
                image = tf.io.decode_image(content, channels=channels, expand_animations=False)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise DataError(
                f"Image {file!r} cannot be decoded with {channels} channels: "
                f"{brief(error)} Remove it, or save it again."
            ) from error
        # The filter of keras.utils.image_dataset_from_directory.
        resized: Array = tf.image.resize(image, (height, width), method="bilinear").numpy()
        return resized


def _check_pixels(file: Path) -> None:
    """Raises an error if the header of an image tells of far more pixels than its file can hold."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(brief(error)) from error
    except Exception:  # TensorFlow tells better what is wrong, or can read it all the same.
        return
    check_unpacked(file, len(image.getbands()) * width * height)


def fit_images(source: str, array: LazyArray, rows: ImageRows, spec: Any) -> LazyArray:
    """Sets the size of images, an array over ``rows``, to that of a model's input.

    Raises:
        DataError: If the input has no fixed size, or not the shape of an image.
    """
    shape = tuple(spec.shape)[1:]
    size = (*shape, 1) if len(shape) == 2 else shape
    if len(size) != 3 or None in size or size[-1] not in CHANNELS:
        raise DataError(
            f"Images in folders are resized to the input of the model, which must be of a fixed "
            f"height and width and of {', '.join(map(str, CHANNELS[:-1]))} or {CHANNELS[-1]} "
            f"channels. Received: input {spec.name!r} with samples of shape {shape} for data "
            f"{source!r}. Set its size with --size, or give the images as an array."
        )
    return array.over(replace(rows, size=size))


def read_folder(root: Path) -> tuple[dict[str, Split], str, tuple[str, ...]]:
    """Lists and hashes the images of a folder, without decoding them.

    It holds a folder of images for each class, or folders ``train``, ``validation`` (or ``val``)
    and ``test`` with such folders.

    Returns:
        The parts by name, with an empty name where the folder is not divided; a digest; notes.

    Raises:
        DataError: If the folder has another layout.
    """
    if root.resolve().parent == root.resolve():
        raise DataError(
            "Data must be a folder that holds images alone, which all of the file system is not. "
            f"Received: {str(root)!r}."
        )
    try:
        return _read(root)
    except OSError as error:
        raise DataError(f"Folder {str(root)!r} cannot be read: {brief(error)}") from error


def _read(root: Path) -> tuple[dict[str, Split], str, tuple[str, ...]]:
    folders = _part_folders(root)
    listed = {part: _list_images(folder) for part, folder in folders.items()}
    classes = {part: names for part, (_, names) in listed.items()}
    first, *others = classes.values()
    if any(names != first for names in others):
        raise DataError(
            f"The parts of data {str(root)!r} must have the same classes, a folder for each of "
            f"them. Received: {classes}."
        )
    numbers = {name: number for number, name in enumerate(first)}
    digest = hashlib.sha256()
    parts = {}
    for part, (files, _) in listed.items():
        for path in map(Path, sorted(files)):
            with path.open("rb") as content:
                hashed = hashlib.file_digest(content, "sha256").hexdigest()
            name = path.relative_to(root).as_posix()
            digest.update(f"{name} {path.stat().st_size} {hashed}\n".encode())
        labels = [numbers[Path(f).relative_to(folders[part]).parts[0]] for f in files]
        images = LazyArray(ImageRows(files))
        split = Split({ONLY_INPUT: images}, {LABELS: np.array(labels, np.int64)})
        # The first samples stand for all, so they must not be sorted by class.
        parts[part] = split.take(shuffled(len(split)))
    shown = [f"{number} {name}" for number, name in enumerate(first[:SHOWN_CLASSES])]
    names = ", ".join([*shown, "..."] if len(first) > SHOWN_CLASSES else shown)
    note = f"labels are the {len(first)} folders in sorted order: {names}"
    return parts, digest.hexdigest(), (note,)


def _part_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of parts by name, or the root under an empty name."""
    folders = _folders(root)
    named = [name for name in folders if name in PART_NAMES and _folders(root / name)]
    if not {"train", "test"} & set(named):
        return {"": root}
    parts = {PART_NAMES[name]: root / name for name in named}
    if named != folders or len(parts) < len(named):
        raise DataError(
            f"Data {str(root)!r} must hold the folders train, validation (or val) and test alone, "
            f"each with a folder for each class. Received: {folders}."
        )
    if "validation" in parts and "train" not in parts:
        raise DataError(
            f"Data {str(root)!r} must have a folder train where they have one for validation. "
            f"Received: {folders}."
        )
    return parts


def _folders(root: Path) -> list[str]:
    return sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _is_usable(path: Path) -> bool:
    """Tells whether TensorFlow can take a path, and read it to an end if it would."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return path.is_file() or path.is_dir() or path.suffix.lower() not in SUFFIXES


def _list_images(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns the images below a folder, and the names of its classes."""
    classes = _folders(folder)
    # Keras would go through all folders below before it finds that there is no image.
    if not any(
        file.suffix.lower() in SUFFIXES
        for name in classes
        if os.access(folder / name, os.R_OK)
        for file in (folder / name).iterdir()
    ):
        held = "folders, and no image in them" if classes else "no folder"
        raise DataError(
            f"A folder of data must hold a folder for each class, with images in it "
            f"({', '.join(SUFFIXES)}). Received: {str(folder)!r}, which holds {held}. "
            "Arrays are given as an .npz or .npy file."
        )
    import keras

    refused = [path for path in folder.rglob("*") if not _is_usable(path)]
    if refused:
        raise DataError(
            "A folder of data must hold regular files and folders with names in UTF-8. Received: "
            f"{str(refused[0])!r}. Remove it, or give it another name."
        )
    listing = keras.utils.image_dataset_from_directory(
        folder, batch_size=None, image_size=(1, 1), shuffle=False, verbose=False
    )
    return list(listing.file_paths), tuple(listing.class_names)
