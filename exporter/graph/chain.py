"""A layer that stands in for another one inside its owner, and calls a chain of layers."""

import functools
from typing import Any

from exporter.graph.layers import configuration
from exporter.graph.types import Layer

_OF_CALLS = (
    "_call_signature",
    "_call_context_args",
    "_call_has_context_arg",
    "_call_has_mask_arg",
    "_call_has_training_arg",
    "call_signature_parameters",
)
"""What Keras knows of the arguments of ``call``."""


def chain(original: Layer, layers: tuple[Layer, ...], call: Any) -> Layer:
    """Makes a layer with the name, the arguments and the options of another one.

    Args:
        original: The layer that its owner calls.
        layers: The built layers that are called in its place.
        call: A callable, frozen dataclass that calls them.
    """
    return _class()(original, layers, call)


def is_chain(layer: Layer) -> bool:
    """Tells whether a layer was made by ``chain``."""
    return isinstance(layer, _class())


@functools.cache
def _class() -> Any:
    import keras

    class FactorChain(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, original: Layer, layers: tuple[Layer, ...], call: Any) -> None:
            policy = original.dtype_policy
            super().__init__(name=original.name, trainable=original.trainable, dtype=policy)
            self.factors, self._chain = list(layers), call
            for name in _OF_CALLS:
                object.__setattr__(self, name, getattr(original, name))
            given = configuration(original)
            # What an owner may ask its layer for, though never its weights.
            self._options = {name: getattr(original, name, given[name]) for name in given}
            if hasattr(original, "states"):  # Stateful layers are refused, so they are None.
                self._options["states"] = None
            self.supports_masking = self.built = True

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name not in vars(self).get("_options", ()):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            return self._options[name]

        def call(self, *args: Any, **kwargs: Any) -> Any:
            return self._chain(*args, **kwargs)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            for layer in self.factors:
                mask = layer.compute_mask(inputs, mask)
            return mask

        def compute_output_shape(self, shape: Any) -> Any:
            for layer in self.factors:
                shape = layer.compute_output_shape(shape)
            return shape

    return FactorChain
