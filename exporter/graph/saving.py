"""Saves Keras models: whole, or as weights alone where Keras could not rebuild them."""

import warnings
from pathlib import Path
from typing import Any

from exporter.graph.chain import is_chain
from exporter.graph.layers import with_parts
from exporter.graph.types import Model


def weights_file(path: Path | str) -> Path:
    """Returns the path of the weights that stand in for a ``.keras`` file."""
    return Path(path).with_suffix(".weights.h5")


def save_model(model: Model, path: Path) -> bool:
    """Writes a model to a ``.keras`` file, or its weights to ``weights_file``.

    Returns:
        Whether the whole model was written.
    """
    whole = _is_rebuilt_by_keras(model)
    if whole:
        model.save(path)
    else:
        model.save_weights(weights_file(path))
    return whole


def _is_rebuilt_by_keras(model: Model) -> bool:
    """Tells whether the configuration of a model gives a model with the same weights.

    That of a custom layer is the one before its inner layers were replaced, and a lambda has none.
    """
    import keras

    layers = with_parts(model)
    functions = (getattr(each, "__name__", "") for layer in layers for each in vars(layer).values())
    if any(map(is_chain, layers)) or "<lambda>" in functions:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lambdas are warned of.
            config = keras.saving.serialize_keras_object(model)
            if _is_of_keras(config):
                return True
            classes = {type(layer).__name__: type(layer) for layer in layers}
            copy = keras.saving.deserialize_keras_object(config, custom_objects=classes)
    except Exception:  # The code of custom layers may raise anything.
        return False
    return [v.shape for v in copy.weights] == [v.shape for v in model.weights]


def _is_of_keras(config: Any) -> bool:
    """Tells whether a configuration names classes and functions of Keras alone."""
    if isinstance(config, dict):
        if not str(config.get("module", "keras")).startswith("keras"):
            return False
        return all(map(_is_of_keras, config.values()))
    return not isinstance(config, (list, tuple)) or all(map(_is_of_keras, config))
