"""Loads Keras models from files."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.network import Network


def load_model(path: str) -> Network:
    """Loads a ``.keras`` or ``.h5`` file in safe mode and checks that its graph can be rewritten.

    Raises:
        ModelError: If the file is missing, damaged, of another kind, unsafe, or not such a model.
    """
    file = Path(path)
    _check_file(file)
    import keras

    try:
        model = keras.models.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its deserialization runs into.
        raise ModelError(f"{path!r} cannot be loaded: {_explain(error)}") from error
    return Network(model)


def loss_in_file(path: str) -> Any:
    """Reads the loss from a file that ``load_model`` has loaded, and not the optimizer's state.

    It is returned as ``keras.Model.compile`` takes it; None if the model was not compiled.

    Raises:
        ModelError: If Keras does not know the loss.
    """
    import h5py
    import keras

    file = Path(path)
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            config = json.loads(archive.read("config.json")).get("compile_config")
    else:
        with h5py.File(file) as stored:
            config = json.loads(stored.attrs.get("training_config", "null"))
    loss = (config or {}).get("loss")
    try:
        return keras.saving.deserialize_keras_object(loss) if loss is not None else None
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The loss that {path!r} was compiled with cannot be read: {brief(error)} Load the "
            "model in Python with its custom_objects, and call exporter.run with the object."
        ) from error


def _check_file(file: Path) -> None:
    if not file.exists():
        raise ModelError(f"The model file {str(file)!r} does not exist.")
    if file.suffix not in {".keras", ".h5", ".hdf5"} or not file.is_file():
        raise ModelError(f"A model is a .keras or .h5 file. Received: {str(file)!r}.")
    try:
        with file.open("rb") as stream:
            if file.suffix == ".keras":
                kind, intact = "zip archive of Keras 3", zipfile.is_zipfile(stream)
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
    text = str(error)
    if "Lambda" in text:
        return (
            "it has a Lambda layer, which would run code from the file. "
            "Replace it by a layer of Keras, for example keras.layers.Rescaling."
        )
    unknown = re.search(r"(?:Could not locate class|Unknown layer:?) '?(\w+)", text)
    if unknown:
        return (
            f"Keras does not know its class {unknown[1]!r}. Load it in Python with its "
            "custom_objects and call exporter.run with the object."
        )
    return brief(error)
