"""Names the inputs and outputs of a Keras model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exporter.errors import ModelError
from exporter.graph.types import Model, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tensors = Mapping[str, "NDArray[np.generic]"]

FREE_SIZE = 32
"""What a free dimension other than the batch counts as, in costs and in random inputs."""


@dataclass(frozen=True)
class Quantization:
    """What the integers of a tensor stand for: ``real = scale * (integer - zero_point)``.

    Attributes:
        scale: Real value of one step.
        zero_point: The integer that stands for zero.
    """

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        name: The name in every artifact: the Keras name, made an identifier.
        shape: Sizes with the batch axis first; None where a size is not fixed.
        dtype: NumPy's name of the element type.
        quantization: What its integers stand for; None if it is not quantized.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantization: Quantization | None = None

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on; None if any will do."""
        return self.shape[0] if self.shape else None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of the smallest batch, ``FREE_SIZE`` where another size is not fixed."""
        return (self.fixed_batch or 1, *(size or FREE_SIZE for size in self.shape[1:]))


Interface = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""Inputs and outputs."""


def split(inputs: Tensors, size: int) -> list[Tensors]:
    """Cuts a batch of named arrays into smaller ones, the last of which may be smaller still."""
    count = len(next(iter(inputs.values())))
    return [
        {name: array[start : start + size] for name, array in inputs.items()}
        for start in range(0, count, size)
    ]


class Signature:
    """A Keras model as a function of named inputs, under names that every format accepts.

    The names are those of the input layers and of the layers that give the outputs (or the keys,
    where the model returns a dictionary), with characters that no identifier has replaced by ``_``.

    Attributes:
        model: The Keras model.
        inputs: In the order of ``model.inputs``.
        outputs: In the order of the flattened output structure.
    """

    def __init__(self, model: Model) -> None:
        """Reads the names.

        Raises:
            ModelError: If the model has an input that is not dense.
        """
        import keras

        if any(tensor.sparse for tensor in model.inputs):
            raise ModelError("Sparse inputs cannot be exported. Give the model dense inputs.")
        self.model = model
        input_names = [tensor._keras_history.operation.name for tensor in model.inputs]
        self.inputs = _infos(input_names, model.inputs)
        structure = getattr(model, "output", None)
        if isinstance(structure, dict):
            tensors = keras.tree.flatten(structure)
            # Keras flattens dictionaries in the order of their sorted keys.
            paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
            output_names = [".".join(map(str, path)) for path in paths]
        else:
            tensors = model.outputs
            output_names = [tensor._keras_history.operation.name for tensor in tensors]
        self.outputs = _infos(output_names, tensors)
        self._names_by_layer: dict[str, str] = dict(
            zip(input_names, (info.name for info in self.inputs), strict=True)
        )
        self._structure = getattr(model, "_inputs_struct", None)

    def interface(self, batch: int | None) -> Interface:
        """Returns inputs and outputs, with ``batch`` as the batch size where it is free."""

        def fixed(infos: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
            # A scalar has no batch axis.
            return tuple(
                replace(i, shape=(*(n or batch for n in i.shape[:1]), *i.shape[1:])) for i in infos
            )

        return fixed(self.inputs), fixed(self.outputs)

    def input_name(self, name: str) -> str:
        """Translates the name of a Keras input layer; other names are returned as they are."""
        return self._names_by_layer.get(name, name)

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the arrays of a batch as the tensors that the signature takes, by name."""
        import tensorflow as tf

        return {
            info.name: tf.convert_to_tensor(batch[info.name], info.dtype) for info in self.inputs
        }

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Calls the model in inference on tensors by name, and names what it returns."""
        return self.call(inputs)

    def call(self, inputs: Mapping[str, Tensor], *, training: bool = False) -> dict[str, Tensor]:
        """Calls the model on tensors by name, and names what it returns.

        Args:
            inputs: By input name.
            training: Whether dropout and the like are active.
        """
        import keras

        flat = [inputs[info.name] for info in self.inputs]
        structure = flat[0] if len(flat) == 1 else flat
        if isinstance(self._structure, (dict, list, tuple)):
            structure = keras.tree.pack_sequence_as(self._structure, flat)
        flat_outputs = keras.tree.flatten(self.model(structure, training=training))
        names = (info.name for info in self.outputs)
        return dict(zip(names, flat_outputs, strict=True))


def _infos(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[TensorInfo, ...]:
    taken: set[str] = set()
    infos = []
    for name, tensor in zip(names, tensors, strict=True):
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not identifier[:1].isalpha():
            identifier = f"t{identifier}"
        unique, count = identifier, 1
        while unique in taken:
            unique, count = f"{identifier}_{count}", count + 1
        taken.add(unique)
        infos.append(TensorInfo(unique, tuple(tensor.shape), str(tensor.dtype)))
    return tuple(infos)
