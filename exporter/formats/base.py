"""The contract of a format, and the named signature that every format exports.

A format turns a Keras model into an artifact, opens the artifact in its own runtime, and lists the
tensors that are stored in it. Nothing after this package asks for a format's name: what differs
between formats is an attribute or a method here.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from exporter.card import ModelCard
from exporter.errors import DataError, ModelError
from exporter.extras import NO_EXTRA, Extra
from exporter.formats.variants import FLOAT32, Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.generic]]
else:
    Tensors = Mapping

Granularity = Literal["tensor", "channel"]


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


Interface = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""Inputs and outputs."""


@dataclass(frozen=True)
class StoredTensor:
    """A constant found in an artifact.

    Attributes:
        name: Its name there; empty if it has none.
        shape: Its sizes.
        nbytes: The bytes it takes in the file.
        digest: A hash of its bytes: equal digests are one tensor stored or referred to twice.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str

    @classmethod
    def of(cls, name: str, array: "NDArray[Any]") -> "StoredTensor":
        """Describes an array."""
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        return cls(name, tuple(array.shape), array.nbytes, digest)


@dataclass(frozen=True)
class Artifact:
    """A file, or folder, that an export wrote.

    Attributes:
        format: The name of its format.
        variant: The name of its variant.
        path: Where it is.
        size: Bytes that it takes where it runs: of the file, of all files in the folder, or of what
            source code defines.
        sha256: Hash of the file; of a folder, of the sorted names and hashes of its files.
        inputs: What it takes.
        outputs: What it gives.
        figures: What else was measured of it, by name.
    """

    format: str
    variant: str
    path: Path
    size: int
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    figures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOptions:
    """What formats can be asked for; each reads what concerns it.

    Attributes:
        variant: Name of the numeric variant, one of the format's.
        opset: ONNX operator set.
        io_type: Element type of inputs and outputs of a variant that computes in integers.
        granularity: Whether weights are quantized with one scale a ``"tensor"`` or a ``"channel"``.
        dense_by_tensor: Whether those of dense layers have one scale a tensor in any case.
        ranges: How the range of an activation is estimated: ``"minmax"``, ``"percentile"``,
            ``"mse"`` or ``"entropy"``.
        calibration: Batches of inputs by name that activations are observed on; for variants that
            are calibrated.
        card: What the artifact tells of its model.
    """

    variant: str = FLOAT32
    opset: int = 17
    io_type: str = FLOAT32
    granularity: Granularity = "tensor"
    dense_by_tensor: bool = False
    ranges: str = "minmax"
    calibration: Sequence[Tensors] = ()
    card: ModelCard = field(default_factory=ModelCard)

    def require_calibration(self) -> None:
        """Checks that there are samples for a variant that is calibrated.

        Raises:
            DataError: If there are none.
        """
        if not self.calibration:
            raise DataError(
                f"Variant {self.variant!r} needs samples to calibrate the ranges of activations "
                "on. Received: none. Name data with --data, and let --calibration be 1 or more."
            )


def split(inputs: Tensors, size: int) -> list[Tensors]:
    """Cuts a batch of named arrays into smaller ones, the last of which may be smaller still."""
    count = len(next(iter(inputs.values())))
    return [
        {name: array[start : start + size] for name, array in inputs.items()}
        for start in range(0, count, size)
    ]


class Runner(Protocol):
    """An artifact opened in a runtime: named arrays in, named arrays out.

    Where an artifact takes or gives integers that stand for real numbers, the runner converts:
    callers see real numbers alone.
    """

    def __call__(self, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Predicts a batch."""

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch and returns the bare call of the runtime, for timing."""


class Format(ABC):
    """What can be exported to.

    Attributes:
        name: As in ``--format``.
        suffix: Of the artifact's name; empty for a folder.
        variants: The numeric variants on offer, the one that is not quantized first.
        backends: Ways in which the runtime can execute an artifact. All are verified; the first is
            the one that ships, and the one that is timed.
        slow: Whether even the first computes by plain reference kernels, and is verified on fewer
            samples where the model is large; the others always are.
        thread_environment: Environment variables that hold the runtime to one thread, for those
            that take it from nowhere else.
        extra: What has to be installed for it.
        batch: Batch size of its artifacts where the model leaves it free; None leaves it so.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    variants: ClassVar[tuple[Variant, ...]] = (Variant(FLOAT32),)
    backends: ClassVar[tuple[str, ...]]
    slow: ClassVar[bool] = False
    thread_environment: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[Extra] = NO_EXTRA
    batch: ClassVar[int | None] = None

    def variant(self, name: str) -> Variant:
        """Returns the variant of a name that the format has."""
        return next(variant for variant in self.variants if variant.name == name)

    def require_extra(self) -> None:
        """Checks that what it needs is installed.

        Raises:
            RecipeError: If it is not; the message names the extra.
        """
        self.extra.require(f"Format {self.name!r}")

    @abstractmethod
    def export(self, model: Any, path: Path, options: ExportOptions) -> None:
        """Writes the model to ``path``, which must not exist.

        Raises:
            ConversionError: If the converter fails, or its result cannot be opened.
        """

    def interface(self, path: Path, model: Any) -> Interface:
        """Returns the inputs and the outputs of an artifact of a model."""
        del path
        signature = Signature(model, batch=self.batch)
        return signature.inputs, signature.outputs

    def recognizes(self, path: Path) -> bool:
        """Tells whether a path looks like an artifact of this format."""
        return path.is_file() and path.suffix == self.suffix

    def size(self, path: Path) -> int:
        """Returns the bytes that an artifact takes where it runs."""
        return measure(path)[0]

    def figures(self, path: Path) -> Mapping[str, int]:
        """Returns what else was measured of an artifact, by name."""
        del path
        return {}

    @abstractmethod
    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens an artifact in its runtime.

        Args:
            path: The artifact.
            backend: One of ``backends``.
            threads: How many threads the runtime may use; None leaves it to the runtime.
        """

    @abstractmethod
    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Parses an artifact and lists every constant that is stored in it."""


class Signature:
    """The inputs and outputs of a Keras model, under names that every format accepts.

    The names are those of the input layers and of the layers that give the outputs (or the keys,
    where the model returns a dictionary), with characters that no identifier has replaced by ``_``.

    Attributes:
        inputs: In the order of ``model.inputs``.
        outputs: In the order of the flattened output structure.

    Raises:
        ModelError: If the model has an input that is not dense.
    """

    def __init__(self, model: Any, *, training: bool = False, batch: int | None = None) -> None:
        """Reads the names.

        Args:
            model: The model.
            training: Whether dropout and the like are active when the signature is called.
            batch: The batch size, where that of the model is free; None leaves it so.
        """
        import keras

        if any(tensor.sparse for tensor in model.inputs):
            raise ModelError("Sparse inputs cannot be exported. Give the model dense inputs.")
        input_names = [tensor._keras_history.operation.name for tensor in model.inputs]
        self.inputs = _infos(input_names, model.inputs, batch)
        structure = getattr(model, "output", None)
        if isinstance(structure, dict):
            tensors = keras.tree.flatten(structure)
            # Keras flattens dictionaries in the order of their sorted keys.
            output_names = [".".join(map(str, path)) for path, _ in _flat_paths(structure)]
        else:
            tensors = model.outputs
            output_names = [tensor._keras_history.operation.name for tensor in tensors]
        self.outputs = _infos(output_names, tensors, batch)
        self._names_by_layer: dict[str, str] = dict(
            zip(input_names, (info.name for info in self.inputs), strict=True)
        )
        self._call = model
        self._training = training
        self._structure = getattr(model, "_inputs_struct", None)

    def input_name(self, name: str) -> str:
        """Translates the name of a Keras input layer; other names are returned as they are."""
        return self._names_by_layer.get(name, name)

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Calls the model on tensors by name, and names what it returns."""
        import keras

        flat = [inputs[info.name] for info in self.inputs]
        structure = flat[0] if len(flat) == 1 else flat
        if isinstance(self._structure, (dict, list, tuple)):
            structure = keras.tree.pack_sequence_as(self._structure, flat)
        flat_outputs = keras.tree.flatten(self._call(structure, training=self._training))
        names = (info.name for info in self.outputs)
        return dict(zip(names, flat_outputs, strict=True))


def _flat_paths(structure: Any) -> list[tuple[tuple[Any, ...], Any]]:
    import keras

    return list(keras.tree.flatten_with_path(structure))


def _infos(
    names: Sequence[str], tensors: Sequence[Any], batch: int | None
) -> tuple[TensorInfo, ...]:
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
        shape = (*(size or batch for size in tensor.shape[:1]), *tensor.shape[1:])
        infos.append(TensorInfo(unique, shape, str(tensor.dtype)))
    return tuple(infos)


class KerasRunner:
    """A Keras model under the same contract as an artifact."""

    def __init__(self, model: Any, *, eager: bool = False) -> None:
        """Wraps a model.

        Args:
            model: The model.
            eager: Whether layers are called one by one. As a graph, which takes time to trace, the
                model does not hold all activations at once.
        """
        import tensorflow as tf

        self._signature = Signature(model)
        call = self._signature.__call__
        self._call = call if eager else tf.function(call, autograph=False, reduce_retracing=True)

    def __call__(self, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Predicts a batch."""
        import tensorflow as tf

        tensors = {
            info.name: tf.convert_to_tensor(inputs[info.name], dtype=info.dtype)
            for info in self._signature.inputs
        }
        return {name: value.numpy() for name, value in self._call(**tensors).items()}


def describe(fmt: Format, variant: str, path: Path, model: Any) -> Artifact:
    """Measures what an export wrote."""
    if fmt.variant(variant).calibrated:
        inputs, outputs = fmt.interface(path, model)
    else:  # Only what computes in integers may take and give them.
        signature = Signature(model, batch=fmt.batch)
        inputs, outputs = signature.inputs, signature.outputs
    size, (_, sha256), figures = fmt.size(path), measure(path), fmt.figures(path)
    return Artifact(fmt.name, variant, path, size, sha256, inputs, outputs, figures)


def measure(path: Path) -> tuple[int, str]:
    """Returns bytes and SHA-256 of a file, or of a folder as ``Artifact`` defines them."""
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    total, lines = 0, []
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        size, digest = measure(file_path)
        total += size
        lines.append(f"{file_path.relative_to(path).as_posix()} {digest}\n")
    return total, hashlib.sha256("".join(lines).encode()).hexdigest()
