"""Loads Keras models from files."""

import io
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from exporter.errors import ModelError, brief, root_cause
from exporter.graph.backend import require_tensorflow
from exporter.graph.imports import register
from exporter.graph.keras2.layers import LAMBDA, loss_config, unknown_class
from exporter.graph.keras2.model import model_from
from exporter.graph.keras2.weights import read_archive, read_h5
from exporter.graph.layers import kinds
from exporter.graph.names import make_names_usable
from exporter.graph.network import Network
from exporter.graph.types import Model
from exporter.inputs import check_archive, check_hdf5, check_unpacked, parse_json
from exporter.isolation import environment_of_children

READ_SECONDS = 20
"""Time that the attributes of an HDF5 file may take to be read."""

_WEIGHTS = "model.weights.h5"

_DAMAGED = object()
"""Stands for a loss that cannot be read; the model can be used without."""


class _Stored(NamedTuple):
    """What a file tells of its model, and the version of Keras that wrote it."""

    version: str
    model: Any
    loss: Any

    @property
    def is_old(self) -> bool:
        return self.version.startswith(("1.", "2."))


def load_model(path: str) -> Network:
    """Loads a ``.keras`` or ``.h5`` file in safe mode and checks that its graph can be rewritten.

    Files of Keras 2 are translated. Keras knows the layers whose kind another package has added.

    Raises:
        ModelError: If the file is missing, damaged, of another kind, unsafe, or not such a model.
    """
    file = Path(path)
    _check_file(file)
    require_tensorflow()
    register({layer.__name__: layer for layer in kinds()})
    stored = None
    try:
        stored = _read(file)
        model = _load_old(file, stored) if stored.is_old else _load(file, stored)
    except Exception as error:  # Keras raises whatever its deserialization runs into.
        whose = f", a file of Keras {stored.version}," if stored and stored.is_old else ""
        raise ModelError(f"{path!r}{whose} cannot be loaded: {_explain(error)}") from error
    renamed = make_names_usable(model)
    return Network(model).copy() if renamed else Network(model)


def translation_note(path: str) -> str:
    """Tells that ``load_model`` translated a file; empty if there was no need to."""
    stored = _read(Path(path))
    return f"{path} is of Keras {stored.version}: it was translated" if stored.is_old else ""


def loss_in_file(path: str) -> Any:
    """Reads the loss from a file that ``load_model`` has loaded, and not the optimizer's state.

    It is returned as ``keras.Model.compile`` takes it; None if the model was not compiled.

    Raises:
        ModelError: If Keras cannot make it.
    """
    import keras

    stored = _read(Path(path))
    if stored.loss is _DAMAGED:
        raise ModelError(f"What {path!r} was compiled with is damaged.")
    legacy = stored.is_old or Path(path).suffix != ".keras"  # Keras 3 writes .h5 as Keras 2 did.
    try:
        config = loss_config(stored.loss) if legacy else stored.loss
        loss = None if config is None else keras.saving.deserialize_keras_object(config)
        for name in keras.tree.flatten(loss):
            keras.losses.get(name)
    except Exception as error:  # Keras raises whatever its deserialization runs into.
        raise ModelError(
            f"The loss that {path!r} was compiled with cannot be read: {brief(error)}"
        ) from error
    return loss


def _load(file: Path, stored: _Stored) -> Model:
    import keras

    def build(config: Any) -> Model:
        config.pop("compile_config", None)  # Else the optimizer's state would be made.
        if file.suffix == ".keras":
            return keras.saving.deserialize_keras_object(config, safe_mode=True)
        from keras.src.legacy.saving import saving_utils

        return saving_utils.model_from_config(config)

    _check_size(file, stored, build)
    return keras.models.load_model(file, compile=False, safe_mode=True)


def _check_size(file: Path, stored: _Stored, build: Callable[[Any], Model]) -> None:
    """Raises a ValueError if a model would have far more weights than its file can hold.

    A configuration of a few lines may ask for terabytes. Without values, they take no memory.
    """
    import keras

    # States of recurrent layers are variables that cannot be made without a value.
    text = json.dumps(stored.model).replace('"stateful": true', '"stateful": false')
    with _without_values():
        try:
            weights = build(json.loads(text)).weights
        except Exception as error:
            # Layers of one's own may need values. All else would fail with them, too.
            if keras.saving.get_custom_objects() and "stateless scope" in str(error):
                return
            raise
        size = sum(4 * math.prod(weight.shape) for weight in weights)
    check_unpacked(file, size)


@contextmanager
def _without_values() -> Iterator[None]:
    """Has Keras make variables that take no memory, and forget them.

    Otherwise it would give them values when it leaves the next scope without a state.
    """
    import keras
    from keras.src.backend.common import global_state

    waiting = global_state.get_global_attribute("uninitialized_variables")
    global_state.set_global_attribute("uninitialized_variables", [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting or [])


def _load_old(file: Path, stored: _Stored) -> Model:
    import h5py

    _check_size(file, stored, model_from)
    model = model_from(stored.model)
    if file.suffix != ".keras":
        with h5py.File(file) as opened:
            read_h5(model, stored.model, opened["model_weights"])
        return model
    with zipfile.ZipFile(file) as archive:
        content = io.BytesIO(archive.read(_WEIGHTS))
    with h5py.File(content) as opened:
        read_archive(model, stored.model, opened)
    return model


def _read(file: Path) -> _Stored:
    import h5py

    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            check_archive(file, archive)
            config = _mapping(archive.read("config.json"))
            told = "metadata.json" in archive.namelist()
            metadata = _mapping(archive.read("metadata.json")) if told else {}
            _check_weights(file, archive)
        version = str(metadata.get("keras_version", ""))
        return _Stored(version, config, _loss(config.get("compile_config")))
    _check_attributes(file)
    with h5py.File(file) as opened:
        attributes = opened.attrs
        if "model_config" not in attributes:
            raise ModelError(
                "it has weights alone, and no model. Build the model in Python, call its "
                f"load_weights({str(file)!r}), and save it with model.save('model.keras')."
            )
        check_hdf5(file, opened)
        version = attributes.get("keras_version", "")
        version = version.decode() if isinstance(version, bytes) else str(version)
        try:
            trained = parse_json(attributes.get("training_config", "null"))
        except (ValueError, TypeError):
            trained = _DAMAGED
        return _Stored(version, _mapping(attributes["model_config"]), _loss(trained))


_READ = (
    "import sys, h5py; from exporter.isolation import die_with; die_with(int(sys.argv[1])); "
    "f = h5py.File(sys.argv[2]); [f.attrs[name] for name in f.attrs]"
)


def _check_attributes(file: Path) -> None:
    """Reads attributes in a process of its own, for in a damaged file HDF5 may do so for ever.

    Raises:
        ValueError: If that does not end, or the process dies of it.
    """
    command = [sys.executable, "-P", "-c", _READ, str(os.getpid()), str(file.resolve())]
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            timeout=READ_SECONDS,
            check=False,
            env=environment_of_children(),
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"HDF5 does not end to read its attributes in {READ_SECONDS} s."
        ) from error
    if ended.returncode < 0:  # Other codes are of errors that come again.
        raise ValueError("HDF5 crashes as it reads its attributes.")


def _mapping(text: Any) -> dict[str, Any]:
    """Reads JSON of an object."""
    value = parse_json(text) if isinstance(text, (str, bytes)) else text
    if not isinstance(value, dict):
        raise ModelError(f"its configuration must be a JSON object. Received: {value!r:.100}.")
    return value


def _loss(compiled: Any) -> Any:
    """Returns the loss in what a model was compiled with; only the loss is read of that."""
    if compiled is None:
        return None
    return compiled.get("loss") if isinstance(compiled, dict) else _DAMAGED


def _check_weights(file: Path, archive: zipfile.ZipFile) -> None:
    """Raises a ValueError if the weights in an archive would take too much memory."""
    import h5py

    if _WEIGHTS in archive.namelist():
        packed = archive.getinfo(_WEIGHTS).compress_type != zipfile.ZIP_STORED
        # To go back in what is packed is to unpack it anew.
        stream = io.BytesIO(archive.read(_WEIGHTS)) if packed else archive.open(_WEIGHTS)
        with stream, h5py.File(stream) as opened:
            check_hdf5(file, opened)


def _check_file(file: Path) -> None:
    if not file.exists():
        raise ModelError(f"The model file {str(file)!r} does not exist.")
    if file.suffix not in {".keras", ".h5", ".hdf5"} or not file.is_file():
        raise ModelError(f"A model is a .keras or .h5 file. Received: {str(file)!r}.")
    try:
        with file.open("rb") as stream:
            if file.suffix == ".keras":
                kind, intact = "zip archive of Keras", zipfile.is_zipfile(stream)
            else:
                kind, intact = "HDF5 file", stream.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError as error:
        raise ModelError(f"{str(file)!r} cannot be read: {brief(error)}") from error
    if not intact:
        raise ModelError(
            f"{str(file)!r} must be a {kind}; it is damaged, truncated, or something else. "
            "Save the model again with model.save()."
        )


def _explain(error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error)
    text = str(error)
    if "Lambda" in text:
        return f"it has {LAMBDA}"
    unknown = re.search(r"(?:Could not locate class|Unknown layer:?) '?([\w>]+)", text)
    return unknown_class(unknown[1]) if unknown else root_cause(error)
