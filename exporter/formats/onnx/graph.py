"""The ONNX graph, which several formats are made of, and how onnxruntime runs it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.card import ModelCard
from exporter.errors import ConversionError, brief
from exporter.formats.base import ExportOptions, Format, Runner, StoredTensor
from exporter.formats.onnx.converter import build
from exporter.formats.onnx.integers import interface_quantization, with_integers
from exporter.formats.onnx.quantization import VARIANTS, as_variant, check
from exporter.formats.variants import FLOAT32
from exporter.graph.layers import with_parts
from exporter.graph.network import Network
from exporter.graph.signature import Interface, Tensors


def convert(network: Network, options: ExportOptions) -> bytes:
    """Converts a Keras model to a serialized graph that onnxruntime can run.

    Raises:
        DataError: If the variant is calibrated, and the data do not serve.
        ConversionError: If the converter fails, or the graph cannot be run.
    """
    check(options)
    if options.variant != FLOAT32 and _computes_otherwise(network):
        network = network.recast(FLOAT32)  # What quantizers expect to start from.
    proto = as_variant(build(network, options), options)
    add_metadata(proto, network.name, options.card)
    return checked(proto)


def _computes_otherwise(network: Network) -> bool:
    parts = (part for layer in network.model.layers for part in with_parts(layer))
    return any(part.compute_dtype in {"float16", "bfloat16", "float64"} for part in parts)


def add_metadata(proto: Any, name: str, card: ModelCard) -> None:
    """Puts a card where onnxruntime's ``get_modelmeta`` finds it.

    Normalization and labels are JSON by input and by output in ``metadata_props``, where all values
    are text.
    """
    proto.graph.name = name
    properties = {"name": name}  # The ORT format has no place for that of a graph.
    if card.normalization:
        by_input = {key: asdict(value) for key, value in card.normalization.items()}
        properties["normalization"] = json.dumps(by_input)
    if card.labels:
        properties["labels"] = json.dumps(dict(card.labels), ensure_ascii=False)
    if card.description is not None:
        properties["description"] = proto.doc_string = card.description
    for key, value in properties.items():
        proto.metadata_props.add(key=key, value=value)


def checked(proto: Any) -> bytes:
    """Checks a graph in full, opens it in onnxruntime once, and returns it serialized.

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


def list_tensors(path: Path) -> list[StoredTensor]:
    """Lists the initializers and the constant nodes of a graph."""
    import onnx

    graph = onnx.load(path).graph
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    named = [*((tensor.name, tensor) for tensor in graph.initializer), *constants]
    return [StoredTensor.of(name, onnx.numpy_helper.to_array(tensor)) for name, tensor in named]


class OnnxRuntimeFormat(Format):
    """What all formats have in common that onnxruntime runs."""

    variants = VARIANTS
    backends = ("cpu",)

    def interface(self, path: Path, network: Network) -> Interface:
        """Returns the inputs and outputs, with what those that are integers stand for."""
        return with_integers(super().interface(path, network), path)

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the file in onnxruntime's CPU provider."""
        del backend
        return OnnxRunner(path, threads)


class OnnxRunner:
    """A graph opened in onnxruntime's CPU provider, from a file of any of its formats."""

    def __init__(self, path: Path, threads: int | None) -> None:
        """Opens a file.

        Args:
            path: The file.
            threads: How many threads the runtime may use; None leaves it to the runtime.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        # Such as "tensor(int8)".
        self._types = {value.name: value.type[7:-1] for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._quantization = interface_quantization(metadata)

    def _arrays(self, inputs: Tensors) -> dict[str, Any]:
        from exporter.quantization.affine import to_integers

        return {
            name: to_integers(inputs[name], quantization, dtype)
            if (quantization := self._quantization.get(name))
            else inputs[name]
            for name, dtype in self._types.items()
        }

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        from exporter.quantization.affine import to_reals

        values = self._session.run(self._outputs, self._arrays(inputs))
        return {
            name: to_reals(value, quantization)
            if (quantization := self._quantization.get(name))
            else value
            for name, value in zip(self._outputs, values, strict=True)
        }

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch and returns the bare call of the runtime, for timing."""
        binding = self._session.io_binding()
        for name, array in self._arrays(inputs).items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name)
        return lambda: self._session.run_with_iobinding(binding)
