"""The TensorFlow Lite (LiteRT) format, for Android, iOS and small boards."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporter.formats.base import (
    ExportOptions,
    Format,
    KernelChange,
    OperatorTime,
    Runner,
    StoredTensor,
)
from exporter.formats.batches import batch_of, batched
from exporter.formats.tflite.flatbuffer import (
    convert,
    list_tensors,
    read_interface,
)
from exporter.formats.tflite.metadata import add_metadata
from exporter.formats.tflite.micro import MICRO_VARIANTS
from exporter.formats.tflite.packing import rewrite_kernels
from exporter.formats.tflite.profiling import profile
from exporter.formats.tflite.quantization import VARIANTS
from exporter.formats.tflite.runner import (
    REFERENCE,
    XNNPACK,
    LiteRTRunner,
    activations,
    prepare,
)
from exporter.graph.network import Network
from exporter.graph.signature import Interface, Tensors
from exporter.options.groups import TARGET_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TFLite(Format):
    """One flatbuffer with builtin operators alone and a named signature.

    The batch is free, unless the model loops over steps, as recurrent layers do: then it is 1.
    """

    name = "tflite"
    suffix = ".tflite"
    variants = VARIANTS
    backends = (XNNPACK, REFERENCE)
    runtime = ("ai_edge_litert.interpreter",)
    snippets: ClassVar = {
        "Python": "litert.py",
        "Kotlin": "litert.kt",
        "Swift": "litert.swift",
        "JavaScript": "litert.js",
        "C": "litert.c",
    }
    targets = frozenset(TARGET_NAMES)

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the flatbuffer; see the base class."""
        path.write_bytes(add_metadata(convert(network, options), network.name, options.card))

    def read_interface(self, path: Path) -> Interface:
        """Reads the inputs and outputs from the flatbuffer."""
        return read_interface(path.read_bytes())

    def fixed_batch(self, path: Path) -> int | None:
        """Reads the batch size from the flatbuffer."""
        return batch_of(self.read_interface(path)[0])

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the flatbuffer with XNNPACK, or with the plain reference kernels."""
        return batched(LiteRTRunner(path, backend, threads), self.read_interface(path)[0])

    def prepare(self, path: Path, inputs: Tensors, threads: int) -> Callable[[], object]:
        """Opens the flatbuffer with XNNPACK; see the base class."""
        return prepare(path, inputs, threads)

    def profile(self, path: Path, inputs: Tensors, threads: int, calls: int) -> list[OperatorTime]:
        """Profiles LiteRT with XNNPACK; see the base class."""
        return profile(path, inputs, self.read_interface(path)[0], threads, calls)

    def is_measured(self, target: str, variant: str) -> bool:
        """Tells whether a target has the kernels; TensorFlow Lite Micro lacks those of most."""
        return target != "micro" or variant in MICRO_VARIANTS

    def flatbuffer(self, path: Path) -> bytes:
        """Returns the content of the file."""
        return path.read_bytes()

    def activations(self, path: Path, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Runs LiteRT's kernels without XNNPACK; see the base class."""
        return activations(path.read_bytes(), inputs)

    def rewrite_kernels(self, path: Path, target: Path, change: KernelChange) -> None:
        """Changes the flatbuffer; see the base class."""
        target.write_bytes(rewrite_kernels(path.read_bytes(), change))

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the tensors that have a buffer with content."""
        return list_tensors(path.read_bytes())
