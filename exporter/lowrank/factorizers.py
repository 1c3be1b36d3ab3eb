"""How a layer of each kind is replaced by thin factors: one class a kind, one row in the table."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from exporter.errors import ModelError
from exporter.lowrank.svd import truncated_svd

FREE_SIZE = 32
"""What a free dimension other than the batch counts as, in costs and in random inputs."""


@dataclass(frozen=True)
class Factors:
    """The layers that stand in for one.

    Attributes:
        layers: Built Keras layers, to be called one after the other. The last one bears the name of
            the original, so that output names and ``get_layer`` keep their meaning.
        rank: The rank r.
        discarded_energy: The part of the kernel's squared Frobenius norm left out, 0 to 1.
        relative_error: Predicted ``||K - K_r||_F / ||K||_F``.
    """

    layers: tuple[Any, ...]
    rank: int
    discarded_energy: float
    relative_error: float


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
    def matrix_shape(self, layer: Any) -> tuple[int, int]:
        """Returns (m, n) of the matrix that is factorized: inputs x outputs."""

    @abstractmethod
    def params(self, layer: Any, rank: int | None, *, merge: bool = True) -> int:
        """Counts the parameters, biases included, at a rank; None is the layer as it is."""

    @abstractmethod
    def macs(self, layer: Any, rank: int | None, *, merge: bool = True) -> int:
        """Counts the multiply-accumulates of one call on one sample at a rank.

        Free sizes other than the batch are taken as ``FREE_SIZE``.
        """

    @abstractmethod
    def factorize(self, layer: Any, rank: int, *, merge: bool = True) -> Factors:
        """Returns the thin layers.

        Activation, bias, dtype policy, trainability and regularizers are kept, constraints on the
        kernel are not: they speak of the product.

        Args:
            layer: A built layer that ``supports`` accepts.
            rank: Between 1 and min(m, n).
            merge: Whether S is merged into U; otherwise it is a layer of its own.

        Raises:
            ModelError: If the kernel has an element that is not finite.
            RecipeError: If the rank is out of its range.
        """

    def full_rank(self, layer: Any) -> int:
        """Returns min(m, n), at which nothing is discarded."""
        return min(self.matrix_shape(layer))

    def break_even_rank(self, layer: Any) -> float:
        """Returns mn / (m + n): from this rank on the factors are no smaller than the matrix."""
        m, n = self.matrix_shape(layer)
        return m * n / (m + n)


class DenseFactorizer(Factorizer):
    """``Dense(n)`` becomes ``Dense(r, no bias, linear)`` and ``Dense(n)``."""

    kind = "Dense"

    def supports(self, layer: Any) -> bool:
        """See the base class; quantized and LoRA layers hold more than a kernel."""
        import keras

        return (
            type(layer) is keras.layers.Dense
            and getattr(layer, "quantization_mode", None) is None
            and not getattr(layer, "lora_enabled", False)
        )

    def matrix_shape(self, layer: Any) -> tuple[int, int]:
        """See the base class."""
        m, n = layer.kernel.shape
        return int(m), int(n)

    def params(self, layer: Any, rank: int | None, *, merge: bool = True) -> int:
        """See the base class."""
        bias = layer.units if layer.use_bias else 0
        return bias + self._elements(layer, rank, merge)

    def macs(self, layer: Any, rank: int | None, *, merge: bool = True) -> int:
        """See the base class."""
        output = layer._inbound_nodes[0].outputs[0]
        positions = math.prod(size or FREE_SIZE for size in output.shape[1:-1])
        return positions * self._elements(layer, rank, merge)

    def _elements(self, layer: Any, rank: int | None, merge: bool) -> int:
        m, n = self.matrix_shape(layer)
        if rank is None:
            return m * n
        return rank * (m + n) + (0 if merge else rank**2)

    def factorize(self, layer: Any, rank: int, *, merge: bool = True) -> Factors:
        """See the base class."""
        kernel = _finite_kernel(layer)
        svd = truncated_svd(kernel, rank)
        heads = [("u", svd.u * svd.s)] if merge else [("u", svd.u), ("s", np.diag(svd.s))]
        layers = [_linear_dense(layer, f"{layer.name}_{letter}", k) for letter, k in heads]
        layers.append(_last_dense(layer, svd.vt))
        return Factors(tuple(layers), rank, svd.discarded_energy, svd.relative_error)


FACTORIZERS: tuple[Factorizer, ...] = (DenseFactorizer(),)


def factorizer_for(layer: Any) -> Factorizer | None:
    """Returns the row of the table that supports the layer; None if there is none."""
    return next((f for f in FACTORIZERS if f.supports(layer)), None)


def _finite_kernel(layer: Any) -> Any:
    kernel = layer.kernel.numpy().astype(np.float64)
    bad = int(kernel.size - np.isfinite(kernel).sum())
    if bad:
        raise ModelError(
            f"The kernel of layer {layer.name!r} must be finite. Received: {bad} NaN or infinite "
            f"elements of {kernel.size}. The model may have diverged while it was trained."
        )
    return kernel


def _linear_dense(original: Any, name: str, kernel: Any) -> Any:
    import keras

    layer = keras.layers.Dense(
        kernel.shape[1],
        use_bias=False,
        name=name,
        dtype=original.dtype_policy,
        kernel_regularizer=original.kernel_regularizer,
        trainable=original.trainable,
    )
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel])
    return layer


def _last_dense(original: Any, kernel: Any) -> Any:
    import keras

    config = {**original.get_config(), "kernel_constraint": None}
    layer = keras.layers.Dense.from_config(config)
    layer.build((None, kernel.shape[0]))
    bias = [original.bias.numpy()] if original.use_bias else []
    layer.set_weights([kernel, *bias])
    return layer
