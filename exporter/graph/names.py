"""Names of layers and models that TensorFlow takes; other backends of Keras take any."""

import re
from collections.abc import Iterator

from exporter.errors import ModelError
from exporter.graph.types import Layer, Model

_REFUSED = re.compile(r"[^A-Za-z0-9_.\\/>-]")


def make_names_usable(model: Model) -> bool:
    """Replaces what TensorFlow does not take in the names of a model and its layers.

    Weights keep their names, so the model must be copied if this returns True: a name was changed.
    """
    layers, changed = list(_all(model)), False
    taken = {layer.name for layer in layers}
    for layer in layers:
        name, count = usable(layer.name), 1
        while name != layer.name and name in taken:
            name, count = f"{usable(layer.name)}_{count}", count + 1
        changed |= name != layer.name
        layer.name = name
        taken.add(name)
    return changed


def check_names(model: Model) -> None:
    """Checks that TensorFlow takes all names.

    Raises:
        ModelError: If there is one that it does not take.
    """
    refused = [layer.name for layer in _all(model) if usable(layer.name) != layer.name]
    if refused:
        raise ModelError(
            "TensorFlow takes names of ASCII letters, digits and the characters _.\\/>- alone. "
            f"Received: {', '.join(map(repr, refused))}. Save the model and give the file: such "
            "names are changed when it is loaded."
        )


def usable(name: str) -> str:
    """Returns a name with ``_`` in place of each character that TensorFlow does not take."""
    return _REFUSED.sub("_", name)


def _all(model: Model) -> Iterator[Layer]:
    """Yields a model, its layers, and those within them; inputs may have any name."""
    import keras

    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.InputLayer):
            yield layer
