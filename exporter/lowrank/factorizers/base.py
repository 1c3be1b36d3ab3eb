"""The contract of a layer kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from exporter.graph.layers import unsupported_feature
from exporter.graph.rewrite import Replacement
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.truncation import Truncation

Convolution = Literal["channel", "spatial", "tucker2"]
"""How a convolution is cut: k x k, 1 x 1; or k x 1, 1 x k; or 1 x 1, k x k, 1 x 1."""


class Factorizer(ABC):
    """A kind of layer that can be factorized.

    Attributes:
        kind: The Keras class name.
        convolution: The scheme that it carries out; None if the kind has no others.
    """

    kind: str
    convolution: Convolution | None = None

    def supports(self, layer: Any) -> bool:
        """Tells whether the layer can be factorized."""
        return self.matches(layer) and not self.obstacle(layer)

    def matches(self, layer: Any) -> bool:
        """Tells whether the layer is of this kind, exactly: a subclass may compute anything."""
        import keras

        return type(layer) is getattr(keras.layers, self.kind, None)

    def obstacle(self, layer: Any) -> str:
        """Says what keeps a layer of this kind from being factorized; empty if nothing does."""
        return unsupported_feature(layer)

    @abstractmethod
    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """Returns the linear maps of a built layer that can be factorized, each on its own."""

    @abstractmethod
    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """Returns the thin layers.

        Activation, bias, dtype policy, trainability and regularizers are kept, constraints on the
        kernel are not: they speak of the product.

        Args:
            layer: A built layer that ``supports`` accepts.
            truncations: Factors by the kernel's name, one or more; the others stay as they are.
        """


def other_params(layer: Any, variable: Any) -> int:
    """Counts the parameters of a layer that are not in one of its weights."""
    return int(layer.count_params() - np.prod(variable.shape))


def linear_dense(original: Any, name: str, kernel: Any, bias: Any = None, **options: Any) -> Any:
    """Builds a Dense layer without activation, of the original's dtype and trainability.

    Args:
        original: The layer that it stands in for, in part.
        name: Its name.
        kernel: inputs x outputs.
        bias: As many elements as outputs; None for none.
        options: Further arguments of ``keras.layers.Dense``.
    """
    import keras

    layer = keras.layers.Dense(
        kernel.shape[1],
        use_bias=bias is not None,
        name=name,
        dtype=original.dtype_policy,
        trainable=original.trainable,
        **options,
    )
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return layer


def head_names(name: str, count: int) -> list[str]:
    """Names the layers that come before the last: ``name_u`` and, unmerged, ``name_s``."""
    return [f"{name}_{letter}" for letter in "us"[:count]]


def shifted(bias: Any, truncation: Truncation) -> Any:
    """Returns the bias as an array, with what the truncation adds to it."""
    array = bias.numpy()
    if truncation.bias_shift is None:
        return array
    return array + truncation.bias_shift.reshape(array.shape)
