"""TensorFlow Lite's flatbuffer, which several formats are made of."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError, ModelError, brief
from exporter.formats.base import ExportOptions, StoredTensor
from exporter.formats.tflite.quantization import check, is_quantized, quantize
from exporter.formats.variants import FLOAT16
from exporter.graph.conversion import serving_module
from exporter.graph.network import Network
from exporter.graph.signature import Interface, Quantization, TensorInfo, Tensors

XNNPACK = "xnnpack"
REFERENCE = "reference"

_SIGNATURE = "serving_default"


def convert(network: Network, options: ExportOptions, *, batch: int | None = None) -> bytes:
    """Converts a Keras model to a variant, with builtin operators alone.

    Args:
        network: The model.
        options: What is asked for.
        batch: The batch size, where that of the model is free; None leaves it so.

    Raises:
        ConversionError: If the converter fails, or the model has no such variant.
        DataError: If the variant is calibrated, and there is nothing to calibrate it on.
    """
    check(options)
    content = _convert(network, half=options.variant == FLOAT16, batch=batch)
    return quantize(content, options) if is_quantized(options.variant) else content


def _convert(network: Network, *, half: bool, batch: int | None) -> bytes:
    import tensorflow as tf

    try:
        module, function = serving_module(network.signature, batch=batch)
        if _computes_in_half(function.graph):
            # LiteRT has no kernels for that; mixed precision is meant for training.
            module, function = serving_module(network.recast("float32").signature, batch=batch)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        # Flex operators would convert, and then fail to run in a plain LiteRT.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(brief(error)) from error
    except ModelError:
        raise
    except Exception as error:  # The converter raises bare Exceptions of MLIR.
        raise ConversionError(
            f"TFLite conversion failed: {brief(error)} Only builtin operators are allowed; "
            "recurrent layers need a fixed batch or unroll=True."
        ) from error
    return bytes(content)


def list_tensors(content: bytes) -> list[StoredTensor]:
    """Lists the tensors of a flatbuffer that have a buffer with content."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    stored = []
    for graph_index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(graph_index)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            if buffer is None or not buffer.DataLength():
                continue
            data = np.asarray(buffer.DataAsNumpy())
            shape = tuple(int(size) for size in np.atleast_1d(tensor.ShapeAsNumpy()))
            flat = StoredTensor.of((tensor.Name() or b"").decode(), data)
            stored.append(StoredTensor(flat.name, shape, flat.nbytes, flat.digest))
    return stored


def list_operators(content: bytes) -> list[str]:
    """Lists the builtin operators that a flatbuffer uses, sorted."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    model = schema.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return sorted({names[max(c.BuiltinCode(), c.DeprecatedBuiltinCode())] for c in codes})


def read_interface(content: bytes) -> Interface:
    """Reads what a flatbuffer takes and gives, in the order in which interpreters number it."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    inputs = map(signature.Inputs, range(signature.InputsLength()))
    outputs = map(signature.Outputs, range(signature.OutputsLength()))
    return (
        _tensor_infos(graph, map(graph.Inputs, range(graph.InputsLength())), inputs),
        _tensor_infos(graph, map(graph.Outputs, range(graph.OutputsLength())), outputs),
    )


def _tensor_infos(
    graph: Any, indices: Iterable[int], entries: Iterable[Any]
) -> tuple[TensorInfo, ...]:
    from ai_edge_litert import schema_py_generated as schema

    types = {code: name.lower() for name, code in vars(schema.TensorType).items()}
    names: dict[int, list[str]] = {}  # One tensor may be given under two names.
    for entry in entries:
        names.setdefault(entry.TensorIndex(), []).append(entry.Name().decode())
    infos = []
    for index in indices:
        tensor = graph.Tensors(index)
        # The signature has the free sizes, if there are any.
        sizes = map(tensor.ShapeSignature, range(tensor.ShapeSignatureLength()))
        fixed = map(tensor.Shape, range(tensor.ShapeLength()))
        shape = tuple(None if size < 0 else size for size in sizes) or tuple(fixed)
        parameters, quantization = tensor.Quantization(), None
        if parameters is not None and parameters.ScaleLength():
            quantization = Quantization(parameters.Scale(0), parameters.ZeroPoint(0))
        infos.append(TensorInfo(names[index].pop(0), shape, types[tensor.Type()], quantization))
    return tuple(infos)


def interface(content: bytes, network: Network) -> Interface:
    """Reads what a flatbuffer takes and gives, in the order of the network that it was made of."""
    inputs, outputs = read_interface(content)
    return _in_order(inputs, network.inputs), _in_order(outputs, network.outputs)


def _in_order(infos: Iterable[TensorInfo], wanted: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    by_name = {info.name: info for info in infos}
    return tuple(by_name[info.name] for info in wanted)


class LiteRTRunner:
    """A flatbuffer opened in LiteRT."""

    def __init__(self, model: Path | bytes, backend: str, threads: int | None = None) -> None:
        """Opens the flatbuffer.

        Args:
            model: The file, which LiteRT maps into memory, or its content.
            backend: ``XNNPACK``, or ``REFERENCE`` for the plain reference kernels. Where these lack
                an operator of the model, as they do Elu, LiteRT's own optimized ones stand in for
                all of them, still without XNNPACK.
            threads: How many threads may be used; None leaves it to LiteRT.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        source = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}

        def opened(resolver: Any) -> Any:
            return Interpreter(
                **source, experimental_op_resolver_type=resolver, num_threads=threads
            )

        if backend == XNNPACK:
            self._open = partial(opened, OpResolverType.AUTO)
        else:
            self._open = partial(opened, OpResolverType.BUILTIN_REF)
            try:
                self._open()
            except ValueError as error:
                if "Didn't find op" not in str(error):
                    raise
                self._open = partial(opened, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        self._interpreter = self._open()
        self._signature = self._interpreter.get_signature_runner(_SIGNATURE)
        details = self._signature.get_input_details()
        self._dtypes = {name: detail["dtype"] for name, detail in details.items()}
        self._inputs = _quantizations(details)
        self._outputs = _quantizations(self._signature.get_output_details())

    def _arrays(self, inputs: Tensors) -> dict[str, Any]:
        from exporter.quantization.affine import to_integers

        return {
            name: to_integers(inputs[name], self._inputs[name], dtype)
            if name in self._inputs
            else inputs[name].astype(dtype)
            for name, dtype in self._dtypes.items()
        }

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        from exporter.quantization.affine import to_reals

        outputs: dict[str, Any] = self._signature(**self._arrays(inputs))
        for name, quantization in self._outputs.items():
            outputs[name] = to_reals(outputs[name], quantization)
        return outputs

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch; see the protocol."""
        # An interpreter of its own: one with a signature runner refuses the bare call.
        interpreter = self._open()
        details = self._signature.get_input_details()
        arrays = self._arrays(inputs)
        for name, array in arrays.items():
            interpreter.resize_tensor_input(details[name]["index"], array.shape)
        interpreter.allocate_tensors()
        for name, array in arrays.items():
            interpreter.set_tensor(details[name]["index"], array)
        run: Callable[[], object] = interpreter.invoke
        return run


def _quantizations(details: dict[str, Any]) -> dict[str, Quantization]:
    """Returns what the integers of inputs or outputs stand for; others have a scale of zero."""
    pairs = {name: detail["quantization"] for name, detail in details.items()}
    return {name: Quantization(float(s), int(zero)) for name, (s, zero) in pairs.items() if s}


def _computes_in_half(graph: Any) -> bool:
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return any(tensor.dtype.name in {"float16", "bfloat16"} for tensor in tensors)
