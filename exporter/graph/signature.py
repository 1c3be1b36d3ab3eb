"""Names the inputs and outputs of a Keras model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exporter.errors import ModelError
from exporter.graph.types import Model, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tensors = Mapping[str, "NDArray[np.generic]"]

FREE_SIZE = 32
"""Assumed size of a free dimension other than the batch, in costs and in random inputs."""


@dataclass(frozen=True)
class Quantization:
    """The affine map of a quantized tensor: ``real = scale * (integer - zero_point)``."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        name: The name in every artifact: the Keras name, made an identifier.
        shape: Sizes with the batch axis first; None where a size is not fixed.
        dtype: NumPy's name of the element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantization: Quantization | None = None

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on; None if any will do."""
        return self.shape[0] if self.shape else None


Interface = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""Inputs and outputs."""


def split(inputs: Mapping[str, Any], size: int, count: int | None = None) -> Iterator[Tensors]:
    """Cuts the first ``count`` samples, by default all, into batches; the last may be smaller."""
    if count is None:
        count = len(next(iter(inputs.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


class Signature:
    """A Keras model as a function of named inputs, under names that every format accepts.

    The names are those of the input layers and of the layers that give the outputs (or the keys,
    where the model returns a dictionary). Characters that no identifier has are replaced by ``_``.

    Attributes:
        model: The Keras model.
        inputs: In the order of ``model.inputs``.
        outputs: In the order of the flattened output structure.
    """

    def __init__(self, model: Model, sizes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Reads the names.

        Args:
            model: The Keras model.
            sizes: The shape of a sample of each input, by name, where the model leaves it free.

        Raises:
            ModelError: If an input is not dense or holds no numbers, or an input or output is of
                bfloat16.
        """
        import keras

        for operation in (tensor._keras_history.operation for tensor in model.inputs):
            if operation.output.dtype == "string":
                takers = {node.operation.name for node in operation._outbound_nodes}
                raise ModelError(
                    f"Input {operation.name!r} takes text, for {', '.join(sorted(takers))}; the "
                    "formats take numbers alone. Look words up before the model, and save what "
                    "follows: keras.Model(lookup.output, model.output)."
                )
        if any(tensor.sparse for tensor in model.inputs):
            raise ModelError("Sparse inputs cannot be exported. Give the model dense inputs.")
        self.model = model
        input_names = [tensor._keras_history.operation.name for tensor in model.inputs]
        self.inputs = _infos(input_names, model.inputs)
        output_names = [tensor._keras_history.operation.name for tensor in model.outputs]
        structure = getattr(model, "output", None)
        if isinstance(structure, dict):
            # Keras flattens dictionaries in the order of their sorted keys.
            paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
            output_names = [".".join(map(str, path)) for path in paths]
        for index, tensor in enumerate(model.outputs):
            if any(tensor is each for each in model.inputs) and output_names[index] in input_names:
                output_names[index] += (
                    "_output"  # No format has an input and an output of one name.
                )
        self.outputs = _infos(output_names, model.outputs)
        for info in (*self.inputs, *self.outputs):
            if info.dtype == "bfloat16":
                raise ModelError(
                    f"Inputs and outputs must be of a type that NumPy has. Received: {info.name!r} "
                    "of bfloat16. Build that input, or the last layer, with dtype='float32'."
                )
        names = (info.name for info in self.inputs)
        self._names_by_layer: dict[str, str] = dict(zip(input_names, names, strict=True))
        self._structure = getattr(model, "_inputs_struct", None)
        self._sizes = sizes or {}

    def sample_shape(self, info: TensorInfo) -> tuple[int, ...]:
        """Returns the shape of the smallest batch of an input.

        Free sizes are those of the data, or ``FREE_SIZE`` where there are none.
        """
        free = self._sizes.get(info.name) or (FREE_SIZE,) * len(info.shape)
        sizes = (size or known for size, known in zip(info.shape[1:], free, strict=False))
        return (info.fixed_batch or 1, *sizes)

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

    def by_layer(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values that are given by input as values by Keras input layer."""
        names = self._names_by_layer.items()
        return {layer: values[name] for layer, name in names if name in values}

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the arrays of a batch as the tensors that the signature takes, by name."""
        import tensorflow as tf

        return {i.name: tf.convert_to_tensor(batch[i.name], i.dtype) for i in self.inputs}

    def structured(self, inputs: Mapping[str, Tensor]) -> Any:
        """Returns tensors by name in the structure that the model takes."""
        import keras

        flat = [inputs[info.name] for info in self.inputs]
        if isinstance(self._structure, (dict, list, tuple)):
            return keras.tree.pack_sequence_as(self._structure, flat)
        return flat[0] if len(flat) == 1 else flat

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Calls the model in inference on tensors by name, and names the outputs."""
        return self.call(inputs)

    def call(self, inputs: Mapping[str, Tensor], *, training: bool = False) -> dict[str, Tensor]:
        """Calls the model on tensors by name, with dropout if ``training``; names the outputs."""
        import keras

        flat_outputs = keras.tree.flatten(self.model(self.structured(inputs), training=training))
        names = (info.name for info in self.outputs)
        return dict(zip(names, flat_outputs, strict=True))


def unique_name(name: str, taken: set[str]) -> str:
    """Appends a number to a name that is taken already, and adds the result to ``taken``."""
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    taken.add(unique)
    return unique


def _infos(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[TensorInfo, ...]:
    taken: set[str] = set()
    infos = []
    for name, tensor in zip(names, tensors, strict=True):
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        start = "" if identifier[:1].isalpha() else "t"
        unique = unique_name(f"{start}{identifier}", taken)
        infos.append(TensorInfo(unique, tuple(tensor.shape), str(tensor.dtype)))
    return tuple(infos)
