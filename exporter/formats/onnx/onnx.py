"""The ONNX format, for onnxruntime on servers, phones and in browsers, and the base of ORT."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporter.card import ModelCard
from exporter.disk import scratch_folder
from exporter.errors import ConversionError, brief
from exporter.formats.base import (
    ExportOptions,
    Format,
    KernelChange,
    OperatorTime,
    Runner,
    StoredTensor,
    to_real,
    to_stored,
)
from exporter.formats.batches import batch_of, batched, whole_batches
from exporter.formats.onnx.converter import build
from exporter.formats.onnx.integers import interface_quantization
from exporter.formats.onnx.quantization import VARIANTS, as_variant, observable
from exporter.formats.variants import FLOAT32, INT8
from exporter.graph.layers import with_parts
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo, Tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROFILE_WARM_UP = 5
"""Calls at the start of a profile that do not count."""


def convert(network: Network, options: ExportOptions) -> bytes:
    """Converts a Keras model to a serialized graph that onnxruntime can run.

    Raises:
        DataError: If the variant is calibrated, and the data are missing or do not fit.
        ConversionError: If the converter fails, or the graph cannot be run.
    """
    if options.variant == INT8:  # Checked before the conversion, which takes long.
        options.require_calibration()
    parts = (part for layer in network.model.layers for part in with_parts(layer))
    # ONNX Runtime has hardly any kernels of bfloat16, and quantizers expect float32.
    others = {"bfloat16"} | ({"float16", "float64"} if options.variant != FLOAT32 else set())
    recast = any(part.compute_dtype in others for part in parts)
    key = ("onnx", network, options.batch, options.opset, recast)
    if key not in options.conversions:
        source = network.recast(FLOAT32) if recast else network
        options.conversions[key] = build(source, options)
    # Variants and metadata change the graph in place.
    proto = as_variant(copy.deepcopy(options.conversions[key]), options)
    add_metadata(proto, network.name, options.card)
    return checked(proto)


def add_metadata(proto: Any, name: str, card: ModelCard) -> None:
    """Writes a card into ``metadata_props``, which onnxruntime's ``get_modelmeta`` returns.

    Normalization and labels are JSON objects by input and by output, for all values are text.
    """
    proto.graph.name = name
    properties = {"name": name}  # The ORT format has no place for the name of a graph.
    if card.normalization:
        by_input = {
            name: {key: value for key, value in asdict(each).items() if value is not False}
            for name, each in card.normalization.items()
        }
        properties["normalization"] = json.dumps(by_input)
    if card.labels:
        properties["labels"] = json.dumps(dict(card.labels), ensure_ascii=False)
    if card.description is not None:
        properties["description"] = proto.doc_string = card.description
    for key, value in properties.items():
        proto.metadata_props.add(key=key, value=value)


def checked(proto: Any) -> bytes:
    """Checks a graph in full, opens it in onnxruntime, and returns it serialized.

    tf2onnx does not raise on operators that it lacks; the checker and the runtime do.

    Raises:
        ConversionError: If the graph cannot be run.
    """
    import onnx
    import onnxruntime

    content: bytes = proto.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base.
        raise ConversionError(
            f"The ONNX graph cannot be run: {brief(error)} Another --opset may help."
        ) from error
    return content


class OnnxRuntimeFormat(Format):
    """The common base of the formats that onnxruntime runs."""

    variants = VARIANTS
    backends = ("cpu",)
    runtime = ("onnxruntime",)
    snippets: ClassVar = {"Python": "onnx.py", "JavaScript": "onnx.js", "Swift": "onnx.swift"}

    def read_interface(self, path: Path) -> Interface:
        """Reads the inputs and outputs from a file of any of these formats."""
        runner = OnnxRunner(path, None)
        return tuple(runner.inputs), tuple(runner.outputs)

    def fixed_batch(self, path: Path) -> int | None:
        """Reads the batch size from a file of any of these formats."""
        return batch_of(self.read_interface(path)[0])

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the file in onnxruntime's CPU provider."""
        del backend
        runner = OnnxRunner(path, threads)
        return batched(runner, runner.inputs)

    def prepare(self, path: Path, inputs: Tensors, threads: int) -> Callable[[], object]:
        """Opens the file in onnxruntime's CPU provider; see the base class."""
        return OnnxRunner(path, threads).prepare(inputs)

    def profile(self, path: Path, inputs: Tensors, threads: int, calls: int) -> list[OperatorTime]:
        """Has onnxruntime write a profile; see the base class."""
        with scratch_folder() as folder:
            runner = OnnxRunner(path, threads, profile=folder / "profile")
            call = runner.prepare(inputs)
            for _ in range(PROFILE_WARM_UP + calls):
                call()
            events = json.loads(Path(runner.end_profile()).read_text(encoding="utf-8"))
        durations: dict[str, list[float]] = {}
        nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
        for event in nodes[len(nodes) * PROFILE_WARM_UP // (PROFILE_WARM_UP + calls) :]:
            durations.setdefault(event["args"]["op_name"], []).append(event["dur"] / 1e6)
        return OperatorTime.by_kind(durations, calls)


class Onnx(OnnxRuntimeFormat):
    """One protobuf with the Keras model's names and a batch dimension called ``batch``."""

    name = "onnx"
    suffix = ".onnx"

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the graph; see the base class."""
        path.write_bytes(convert(network, options))

    def activations(self, path: Path, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Has the graph give all that its nodes compute, and does not optimize it."""
        import numpy as np
        import onnx

        model, runner = onnx.load(path), OnnxRunner(path, None)
        computed = [name for node in model.graph.node for name in node.output if name]
        session = observable(model, computed)
        found: dict[str, list[Any]] = {}
        for part in whole_batches(inputs, batch_of(runner.inputs)):
            values = session.run(computed, to_stored(part, runner.inputs))
            for name, array in zip(computed, values, strict=True):
                found.setdefault(name, []).append(array)
        return {name: np.concatenate(parts) for name, parts in found.items() if parts[0].ndim}

    def rewrite_kernels(self, path: Path, target: Path, change: KernelChange) -> None:
        """Changes the initializers; see the base class."""
        import onnx

        model = onnx.load(path)
        for tensor in _all_initializers(model.graph):
            array = onnx.numpy_helper.to_array(tensor)
            if is_kernel(array):
                changed = change(tensor.name, array)
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        onnx.save(model, target)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the initializers and the constant nodes."""
        import onnx

        graph = onnx.load(path).graph
        named = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            values = (each.t for each in node.attribute if each.name == "value")
            if node.op_type == "Constant":
                named += [(node.output[0], tensor) for tensor in values]
        return [StoredTensor.of(name, onnx.numpy_helper.to_array(tensor)) for name, tensor in named]


def is_kernel(array: "NDArray[Any]") -> bool:
    """Tells whether an initializer is a quantized kernel, and no zero point of channels."""
    quantized = array.dtype.name in {"int8", "uint8", "float16"}
    return quantized and array.ndim > 1 and bool(array.min() < array.max())


def _all_initializers(graph: Any) -> Iterator[Any]:
    """Yields the initializers of a graph, and of the graphs within its nodes."""
    yield from graph.initializer
    for attribute in (each for node in graph.node for each in node.attribute if each.HasField("g")):
        yield from _all_initializers(attribute.g)


class OnnxRunner:
    """A file of any of these formats, opened in onnxruntime's CPU provider.

    ``inputs`` and ``outputs`` have the names, shapes and element types.
    """

    def __init__(self, path: Path, threads: int | None, profile: Path | None = None) -> None:
        """Opens a file.

        Args:
            path: The file.
            threads: Number of threads; None leaves it to the runtime.
            profile: How the path of a profile begins that is written; None writes none.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = options.inter_op_num_threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        noted = interface_quantization(self._session.get_modelmeta().custom_metadata_map)
        self.inputs, self.outputs = (
            [TensorInfo(v.name, _sizes(v), _dtype(v.type), noted.get(v.name)) for v in values]
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        names = [info.name for info in self.outputs]
        values = self._session.run(names, to_stored(inputs, self.inputs))
        return to_real(dict(zip(names, values, strict=True)), self.outputs)

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch and returns the bare call of the runtime, for timing."""
        binding = self._session.io_binding()
        for name, array in to_stored(inputs, self.inputs).items():
            binding.bind_cpu_input(name, array)
        for info in self.outputs:
            binding.bind_output(info.name)
        return lambda: self._session.run_with_iobinding(binding)

    def end_profile(self) -> str:
        """Writes the profile that was asked for, and returns its path."""
        return str(self._session.end_profiling())


def _sizes(value: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _dtype(ort_type: str) -> str:
    """Returns NumPy's name of an element type that onnxruntime calls ``"tensor(float)"``."""
    name = ort_type[len("tensor(") : -1]
    return {"float": "float32", "double": "float64"}.get(name, name)
