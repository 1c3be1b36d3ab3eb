"""The contract of a format, and the named signature that every format exports.

A format turns a Keras model into an artifact, opens the artifact in its own runtime, and lists the
tensors that are stored in it. Nothing after this package asks for a format's name: formats differ
by the attributes and methods defined here.
"""

import hashlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from exporter.card import ModelCard
from exporter.errors import ConversionError, DataError
from exporter.formats.extras import NO_EXTRA, Extra
from exporter.formats.variants import FLOAT32, Variant
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo, Tensors
from exporter.inputs import checked_path
from exporter.quantization.granularity import Granularity
from exporter.screen import fits_screen

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredTensor:
    """A constant found in an artifact; a digest found twice is of a tensor that is stored twice."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str

    @classmethod
    def of(cls, name: str, array: "NDArray[Any]") -> "StoredTensor":
        """Describes an array."""
        return cls(name, tuple(array.shape), array.nbytes, _digest(array.tobytes()))

    @property
    def is_zero(self) -> bool:
        """Whether all bits are zero, as of the states that a loop starts from."""
        return self.digest == _digest(bytes(self.nbytes))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class OperatorTime:
    """What operators of one kind take in a call.

    Attributes:
        count: How many are executed.
        seconds: All of them together, on average.
    """

    kind: str
    count: int
    seconds: float

    @classmethod
    def by_kind(cls, durations: Mapping[str, Sequence[float]], calls: int) -> "list[OperatorTime]":
        """Returns the medians over calls of durations in seconds, by kind, the longest first.

        The durations are in the order of the calls. One that the system interrupted, for the size
        of a whole call, would spoil a mean.
        """
        times = []
        for kind, listed in durations.items():
            count = max(1, round(len(listed) / calls))
            sums = [sum(listed[start : start + count]) for start in range(0, len(listed), count)]
            times.append(cls(kind, count, statistics.median(sums)))
        return sorted(times, key=lambda time: -time.seconds)


@fits_screen
@dataclass(frozen=True)
class Artifact:
    """A file, or folder, that an export wrote.

    Attributes:
        size: Bytes that it takes where it runs: of the file, of all files in the folder, or of the
            array that source code defines.
        sha256: Hash of the file; of a folder, of the sorted names and hashes of its files.
        figures: Further measurements, by name.
        notes: In what it falls short of the model, as sentences without a full stop.
    """

    format: str
    variant: str
    path: Path
    size: int
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    figures: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; each format reads the ones that concern it.

    Attributes:
        variant: Name of the numeric variant, one of the format's.
        batch: Batch size where the model leaves it free; None leaves it so, if the format can.
        io_type: Element type of inputs and outputs of a variant that computes in integers.
        granularity: Whether weights are quantized with one scale a ``"tensor"`` or a ``"channel"``.
        dense_by_tensor: Whether dense layers have one scale a tensor whatever the granularity.
        ranges: How the range of an activation is estimated: ``"minmax"``, ``"percentile"``,
            ``"mse"`` or ``"entropy"``.
        calibration: Batches of inputs by name, for variants that are calibrated.
        conversions: What the converters made of networks, which variants share; exports of networks
            whose weights do not change meanwhile may share it.
    """

    variant: str = FLOAT32
    opset: int = 17
    batch: int | None = None
    io_type: str = FLOAT32
    granularity: Granularity = "tensor"
    dense_by_tensor: bool = False
    ranges: str = "minmax"
    calibration: Sequence[Tensors] = ()
    card: ModelCard = field(default_factory=ModelCard)
    conversions: MutableMapping[Any, Any] = field(default_factory=dict)

    def require_calibration(self) -> None:
        """Raises a DataError if there are no samples for a variant that is calibrated."""
        if not self.calibration:
            raise DataError(
                f"Variant {self.variant!r} needs samples to calibrate the ranges of activations "
                "on. Received: none. Name data with --data, and let --calibration be 1 or more."
            )


KernelChange = Callable[[str, "NDArray[Any]"], "NDArray[Any]"]
"""Takes the name of a stored kernel and its elements, and returns others of the same type.

Elements are of int8, uint8 or float16; those of four bits come as int8, flat.
"""


class Runner(Protocol):
    """An artifact opened in a runtime: named arrays in, named arrays out.

    Callers see real numbers only; a runner converts them where the artifact has integers.
    """

    def __call__(self, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Predicts a batch."""

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch and returns the bare call of the runtime, for timing."""


def to_stored(inputs: Tensors, infos: Iterable[TensorInfo]) -> "dict[str, NDArray[Any]]":
    """Converts real inputs to the element types of an artifact."""
    from exporter.quantization.affine import to_integers

    return {
        info.name: to_integers(inputs[info.name], info.quantization, info.dtype)
        if info.quantization
        else inputs[info.name].astype(info.dtype, copy=False)
        for info in infos
    }


def to_real(outputs: Tensors, infos: Iterable[TensorInfo]) -> "dict[str, NDArray[Any]]":
    """Converts the outputs of an artifact to real numbers."""
    from exporter.quantization.affine import to_reals

    return {
        info.name: to_reals(outputs[info.name], info.quantization)
        if info.quantization
        else outputs[info.name]
        for info in infos
    }


class Format(ABC):
    """A format that models are exported to.

    Attributes:
        suffix: Suffix of the artifact's name; empty for a folder.
        variants: The numeric variants on offer, the one that is not quantized first.
        backends: Ways in which the runtime can execute an artifact. All are verified; the first is
            the one that ships, and the one that is timed.
        slow: Whether the first backend computes by plain reference kernels too, and is verified on
            fewer samples where the model is large; the other backends always are.
        thread_environment: Environment variables that hold the runtime to one thread, if nothing
            else does; it reads them no sooner than it first computes.
        runtime: Modules of the runtime.
        imports: Modules of the runtime that take long to import and start no thread by that.
        targets: Values of the option ``target`` that its artifacts can be measured on.
        threaded: Whether the runtime can use several threads.
        snippets: Templates of code that loads an artifact, by language, in the folder ``snippets``
            of the report's templates.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    variants: ClassVar[tuple[Variant, ...]] = (Variant(FLOAT32),)
    backends: ClassVar[tuple[str, ...]]
    slow: ClassVar[bool] = False
    thread_environment: ClassVar[Mapping[str, str]] = {}
    runtime: ClassVar[tuple[str, ...]]
    imports: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[Extra] = NO_EXTRA
    targets: ClassVar[frozenset[str]] = frozenset({"here", "macs"})
    threaded: ClassVar[bool] = True
    snippets: ClassVar[Mapping[str, str]] = {}

    def variant(self, name: str) -> Variant:
        """Returns the variant of a name that the format has."""
        return next(variant for variant in self.variants if variant.name == name)

    def require_extra(self) -> None:
        """Raises a RecipeError that names the extra, if that is not installed."""
        self.extra.require(f"Format {self.name!r}")

    @abstractmethod
    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the model to ``path``, which must not exist.

        Raises:
            ConversionError: If the converter fails, or its result cannot be opened.
        """

    def interface(self, path: Path, network: Network) -> Interface:
        """Returns the inputs and outputs of a network with the element types of its artifact."""
        inputs, outputs = (
            tuple(
                replace(info, dtype=stored.dtype, quantization=stored.quantization)
                for info in infos
                for stored in found
                if stored.name == info.name
            )
            for infos, found in zip(
                network.signature.interface(self.fixed_batch(path)),
                self.read_interface(path),
                strict=True,
            )
        )
        return inputs, outputs

    @abstractmethod
    def read_interface(self, path: Path) -> Interface:
        """Reads the inputs and outputs from an artifact, whatever model it was made from."""

    def fixed_batch(self, path: Path) -> int | None:
        """Returns the batch size that an artifact insists on; None if any will do."""
        del path
        return None

    def recognizes(self, path: Path) -> bool:
        """Tells whether a path looks like an artifact of this format."""
        return path.is_file() and path.suffix == self.suffix

    def size(self, path: Path) -> int:
        """Returns the bytes that an artifact takes where it runs."""
        return measure(path)[0]

    def figures(self, path: Path) -> Mapping[str, int]:
        """Returns further measurements of an artifact, by name."""
        del path
        return {}

    def is_measured(self, target: str, variant: str) -> bool:
        """Tells whether artifacts of a variant can be measured on a target."""
        del variant
        return target in self.targets

    def flatbuffer(self, path: Path) -> bytes:
        """Returns the flatbuffer of TensorFlow Lite in an artifact.

        Raises:
            ConversionError: If the format has none.
        """
        raise ConversionError(f"Format {self.name!r} has no flatbuffer. Received: {str(path)!r}.")

    def activations(self, path: Path, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Predicts samples, and returns the real values of all tensors that operators compute.

        Raises:
            ConversionError: If the runtime does not show them.
        """
        del inputs
        raise ConversionError(
            f"Runtimes of format {self.name!r} do not show activations. Received: {str(path)!r}."
        )

    def rewrite_kernels(self, path: Path, target: Path, change: KernelChange) -> None:
        """Writes a copy of a quantized artifact in which ``change`` has given kernels new elements.

        Raises:
            ConversionError: If the format has no quantized variants.
        """
        del target, change
        raise ConversionError(f"Format {self.name!r} is not quantized. Received: {str(path)!r}.")

    @abstractmethod
    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens an artifact in its runtime; None leaves the number of threads to the runtime."""

    def prepare(self, path: Path, inputs: Tensors, threads: int) -> Callable[[], object]:
        """Opens an artifact in the first backend, binds a batch, and returns the bare call.

        The batch is of the sizes that the artifact asks for, whatever model it was made from.
        """
        return self.load(path, self.backends[0], threads).prepare(inputs)

    def profile(
        self, path: Path, inputs: Tensors, threads: int, calls: int
    ) -> "list[OperatorTime]":
        """Calls an artifact in its runtime's profiler, and returns the time by kind of operator.

        Args:
            path: The artifact.
            inputs: A batch, as for ``prepare``.
            threads: Number of threads.
            calls: How many calls are profiled, after a few others.

        Raises:
            ConversionError: If the runtime has no profiler.
        """
        del inputs, threads, calls
        raise ConversionError(
            f"The runtime of format {self.name!r} has no profiler by operator. "
            f"Received: {str(path)!r}."
        )

    @abstractmethod
    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Parses an artifact and lists every constant that is stored in it."""


def describe(fmt: Format, variant: str, path: Path, network: Network) -> Artifact:
    """Describes the artifact of a network."""
    if fmt.variant(variant).calibrated:  # Only these take and give integers.
        inputs, outputs = fmt.interface(path, network)
    else:
        inputs, outputs = network.signature.interface(fmt.fixed_batch(path))
    size, (_, sha256), figures = fmt.size(path), measure(path), fmt.figures(path)
    notes = batch_notes(fmt.fixed_batch(path), network)
    return Artifact(fmt.name, variant, path, size, sha256, inputs, outputs, figures, notes)


def batch_notes(batch: int | None, network: Network) -> tuple[str, ...]:
    """Returns the note on an artifact that takes one size of batch where the model takes any."""
    if batch is None or network.fixed_batch:
        return ()
    return (f"takes batches of {batch} alone, the model those of any size",)


def measure(path: Path) -> tuple[int, str]:
    """Returns bytes and SHA-256 of a file, or of a folder as ``Artifact`` defines them.

    Raises:
        RecipeError: If it is, or holds, something else, such as a pipe, whose reader would wait.
    """
    checked_path(str(path))
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    total, lines = 0, []
    for file_path in sorted(p for p in path.rglob("*") if not p.is_dir()):
        size, digest = measure(file_path)
        total += size
        lines.append(f"{file_path.relative_to(path).as_posix()} {digest}\n")
    return total, hashlib.sha256("".join(lines).encode()).hexdigest()
