"""The contract of a layer kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from exporter.lowrank.kernels import Kernel
from exporter.lowrank.truncation import Truncation


@dataclass(frozen=True)
class Replacement:
    """The layers that stand in for one.

    Attributes:
        layers: Built Keras layers, in the order in which they are called. The last one bears the
            name of the original, so that output names and ``get_layer`` keep their meaning.
        factors: The weights that stand in for each kernel, by its name.
    """

    layers: tuple[Any, ...]
    factors: Mapping[str, tuple[Any, ...]]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls one layer after the other; what is not the input goes to the last one."""
        *heads, last = self.layers
        for head in heads:
            inputs = head(inputs)
        return last(inputs, *args, **kwargs)


class Factorizer(ABC):
    """A kind of layer that can be factorized.

    Attributes:
        kind: The Keras class name.
    """

    kind: ClassVar[str]

    @abstractmethod
    def supports(self, layer: Any) -> bool:
        """Tells whether the layer is of this kind, exactly: a subclass may compute anything."""

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


def has_plain_kernel(layer: Any) -> bool:
    """Tells whether the layer is neither quantized nor adapted: those hold more than a kernel."""
    return getattr(layer, "quantization_mode", None) is None and not getattr(
        layer, "lora_enabled", False
    )


def rebuild(original: Any, input_shape: Any, weights: list[Any], **changes: Any) -> Any:
    """Builds a layer from the original's configuration, with changes, and sets its weights.

    Args:
        original: The layer that is copied.
        input_shape: With the batch axis.
        weights: Arrays in the order of ``layer.weights``.
        changes: Entries of the configuration.
    """
    layer = type(original).from_config({**original.get_config(), **changes})
    layer.build(input_shape)
    layer.set_weights(weights)
    return layer


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
