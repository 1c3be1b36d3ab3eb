"""The contract of a factorizer, and the steps that all kinds of layers share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from exporter.graph.layers import classes_of, input_shape, unsupported_feature
from exporter.graph.rewrite import Replacement
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation

Convolution = Literal["channel", "spatial", "tucker2"]
"""How a convolution is factorized: k x k, 1 x 1; or k x 1, 1 x k; or 1 x 1, k x k, 1 x 1."""

Shape = tuple[int | None, ...]

LINEAR: dict[str, Any] = {
    "use_bias": False,
    "activation": "linear",
    "bias_regularizer": None,
    "bias_constraint": None,
    "activity_regularizer": None,
}
"""Changes that make a layer linear, so that another one can follow it."""


class Factorizer(ABC):
    """Factorizes the layers of one kind.

    Attributes:
        kind: The name of a class in ``keras.layers``, or a class.
        convolution: The scheme that it carries out; None if the kind has no others.
    """

    convolution: Convolution | None = None

    def __init__(self, kind: str | type) -> None:
        self.kind = kind

    def supports(self, layer: Any) -> bool:
        """Tells whether the layer can be factorized."""
        return self.matches(layer) and not self.obstacle(layer)

    def matches(self, layer: Any) -> bool:
        """Tells whether the layer is of this kind, exactly: a subclass may compute anything."""
        import keras

        kind = getattr(keras.layers, self.kind, None) if isinstance(self.kind, str) else self.kind
        return kind in classes_of(layer)

    def obstacle(self, layer: Any) -> str:
        """Says what keeps a layer of this kind from being factorized; empty if nothing does."""
        return unsupported_feature(layer)

    @abstractmethod
    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """Returns the linear maps of a built layer that can be factorized, each on its own."""

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """Returns the thin layers: ``head``, ``middle`` where S is not merged, and ``tail``.

        Activation, bias, dtype policy, trainability and regularizers are kept. Constraints on the
        kernel are not kept, because they apply to the product.

        Args:
            layer: A built layer that ``supports`` accepts.
            truncations: Factors by the kernel's name, one or more; the others stay as they are.
        """
        (truncation,) = truncations.values()
        *heads, _ = truncation.matrices
        shape, layers = input_shape(layer), list[Any]()
        for letter, matrices in zip("us", heads, strict=False):
            build = self.middle if layers else self.head
            layers.append(build(layer, f"{layer.name}_{letter}", matrices, shape))
            shape = layers[-1].compute_output_shape(shape)
        layers.append(self.tail(layer, truncation, shape))
        return Replacement(tuple(layers), {"": tuple(map(weight_of, layers))})

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """Builds the layer of the first factor; by default, a linear Dense layer.

        Args:
            layer: The original.
            name: Name of the new layer.
            matrices: The factor, g x a x b.
            shape: Shape of its inputs.
        """
        return linear_dense(layer, name, matrices[0], kernel_regularizer=layer.kernel_regularizer)

    def middle(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """Builds the layer of S, with the arguments of ``head``."""
        return self.head(layer, name, matrices, shape)

    @abstractmethod
    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """Builds the layer of the last factor, with the original's name, bias and activation."""


def weight_of(layer: Any) -> Any:
    """Returns the weight that holds the kernel, or the factor, of a layer."""
    holder = getattr(layer, "cell", layer)
    names = ("pointwise_kernel", "embeddings", "kernel")
    return next(getattr(holder, name) for name in names if hasattr(holder, name))


def linear_dense(original: Any, name: str, kernel: Any, bias: Any = None, **options: Any) -> Any:
    """Builds a Dense layer without activation, of the original's dtype and trainability.

    The kernel is an array of inputs x outputs; the options are those of ``keras.layers.Dense``.
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


def shifted(bias: Any, truncation: Truncation) -> Any:
    """Returns a bias as an array, plus the shift that the truncation asks for."""
    array, shift = bias.numpy(), truncation.bias_shift
    return array if shift is None else array + shift.reshape(array.shape)
