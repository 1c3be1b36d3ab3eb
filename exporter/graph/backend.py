"""Checks what Keras computes with."""

import sys

from exporter.errors import ModelError


def require_tensorflow() -> None:
    """Checks that Keras, if it is imported already, uses TensorFlow; else ``exporter`` has set it.

    Raises:
        ModelError: If Keras uses another backend, which cannot be changed any more.
    """
    if "keras" not in sys.modules:
        return
    import keras

    backend = keras.config.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"Keras must use the backend 'tensorflow'. Received: {backend!r}, with which it was "
            "imported. Import exporter before keras, or set KERAS_BACKEND=tensorflow; a .keras "
            "file of any backend can then be loaded."
        )
