"""Names for what Keras and TensorFlow have no types for; to the type checker all are ``Any``."""

from typing import Any

Model = Any
"""A Keras model."""

Layer = Any
"""A Keras layer."""

Variable = Any
"""A weight of a Keras layer."""

Tensor = Any
"""A TensorFlow tensor, or a symbolic tensor of Keras."""
