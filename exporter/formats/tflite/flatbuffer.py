"""Makes and reads TensorFlow Lite's flatbuffer, which several formats consist of."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

from exporter.errors import ConversionError, ModelError, brief
from exporter.formats.base import ExportOptions, StoredTensor
from exporter.formats.tflite.packing import name_of, operator_name, type_name, unpack
from exporter.formats.tflite.quantization import check, needs_observation, quantize
from exporter.formats.variants import FLOAT16, FLOAT32
from exporter.graph.conversion import serving_module
from exporter.graph.network import Network
from exporter.graph.recurrent import loops_over_free_length
from exporter.graph.signature import Interface, Quantization, TensorInfo


def convert(network: Network, options: ExportOptions) -> bytes:
    """Converts a Keras model to a variant, with builtin operators alone.

    The batch is 1 where it is free, but the converter cannot leave it so.

    Raises:
        ConversionError: If the converter fails, or the model has no such variant.
        DataError: If the variant is calibrated, and there is nothing to calibrate it on.
    """
    check(options)
    content = _converted(network, options)
    if options.variant in {FLOAT16, FLOAT32}:
        return content
    if needs_observation(options) and len(unpack(content).subgraphs) > 1:
        # Activations cannot be observed within a loop, and differ from step to step.
        if free := loops_over_free_length(network.layers):
            raise ConversionError(
                f"Variant {options.variant!r} needs the steps of recurrent layers written out, and "
                f"so sequences of a fixed length. Received: a free length in {', '.join(free)}. "
                "Give the input a fixed length, or leave out the variant."
            )
        content = _converted(network, options, unroll=True)
    return quantize(content, options)


def _converted(network: Network, options: ExportOptions, *, unroll: bool = False) -> bytes:
    """Returns the flatbuffer in float, which most variants are made of."""
    key = ("flatbuffer", network, options.batch, options.variant == FLOAT16, unroll)
    if key not in options.conversions:
        options.conversions[key] = _convert(network, options, unroll=unroll)
    content: bytes = options.conversions[key]
    return content


def _convert(network: Network, options: ExportOptions, *, unroll: bool = False) -> bytes:
    import tensorflow as tf

    looping = False
    try:
        module, function = serving_module(network.signature, batch=options.batch, unroll=unroll)
        if _computes_in_half(function.graph):
            # LiteRT has no kernels for it; mixed precision is meant for training.
            return _convert(network.recast("float32"), options, unroll=unroll)
        looping = any(
            "TensorList" in operation.type for operation in function.graph.get_operations()
        )
        if looping and not (options.batch or network.fixed_batch):
            # The lists that loops write to need elements of known shapes.
            return _convert(network, replace(options, batch=1), unroll=unroll)
        # The converter saves the module, and would trace a tf.function once more.
        module.serve = function
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        # Flex operators would convert, and then fail to run in a plain LiteRT.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if options.variant == FLOAT16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(brief(error)) from error
    except (ConversionError, ModelError):
        raise
    except Exception as error:  # The converter raises bare Exceptions of MLIR.
        advice = (
            "recurrent layers may need a fixed length, or unroll=True"
            if looping
            else ("replace the layers that use others, or export to another format")
        )
        raise ConversionError(
            f"TFLite conversion failed: {brief(error)} Only builtin operators are allowed; "
            f"{advice}."
        ) from error
    return bytes(content)


def _computes_in_half(graph: Any) -> bool:
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return any(tensor.dtype.name in {"float16", "bfloat16"} for tensor in tensors)


def list_tensors(content: bytes) -> list[StoredTensor]:
    """Lists the tensors of a flatbuffer that have a buffer with content."""
    import numpy as np

    model = unpack(content)
    stored = []
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            flat = StoredTensor.of((tensor.name or b"").decode(), np.frombuffer(data, np.uint8))
            stored.append(replace(flat, shape=_sizes(tensor.shape)))
    return stored


def list_operators(content: bytes) -> list[str]:
    """Lists the builtin operators that a flatbuffer uses, sorted."""
    return sorted({operator_name(code) for code in unpack(content).operatorCodes})


def macs_by_operator(content: bytes) -> dict[str, int]:
    """Counts the multiply-accumulates of one call, a free batch being 1, by kind of operator."""
    model, counts = unpack(content), Counter[str]()
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = name_of(model, operator)
            if name in _MACS:
                used = [*operator.inputs, operator.outputs[0]]
                *inputs, output = (_sizes(graph.tensors[index].shape) for index in used)
                counts[name] += _MACS[name](inputs, output)
    return dict(counts)


_MACS: dict[str, Callable[[list[tuple[int, ...]], tuple[int, ...]], int]] = {
    # Filters are outputs x height x width x inputs; those of a depthwise one, 1 x height x width.
    "CONV_2D": lambda inputs, output: prod(output) * prod(inputs[1][1:]),
    "DEPTHWISE_CONV_2D": lambda inputs, output: prod(output) * prod(inputs[1][1:3]),
    "TRANSPOSE_CONV": lambda inputs, output: prod(inputs[2]) * prod(inputs[1][:3]),
    "CONV_3D": lambda inputs, output: prod(output) * prod(inputs[1][:4]),
    "FULLY_CONNECTED": lambda inputs, output: prod(output) * inputs[1][-1],
    "BATCH_MATMUL": lambda inputs, output: prod(output) * inputs[0][-1],
}


def read_interface(content: bytes) -> Interface:
    """Reads the inputs and outputs of a flatbuffer, in the order of their numbers there.

    Without a signature, as converters wrote flatbuffers once, tensors have their own names.
    """
    model = unpack(content)
    graph, signatures = model.subgraphs[0], model.signatureDefs
    inputs, outputs = (signatures[0].inputs, signatures[0].outputs) if signatures else ((), ())
    return _tensor_infos(graph, graph.inputs, inputs), _tensor_infos(graph, graph.outputs, outputs)


def _tensor_infos(
    graph: Any, indices: Iterable[int], entries: Iterable[Any]
) -> tuple[TensorInfo, ...]:
    names: dict[int, list[str]] = {}  # One tensor may be given under two names.
    for entry in entries:
        names.setdefault(entry.tensorIndex, []).append(entry.name.decode())
    infos = []
    for index in indices:
        tensor = graph.tensors[index]
        # The signature has the free sizes, if there are any.
        sizes = _sizes(tensor.shapeSignature) or _sizes(tensor.shape)
        shape = tuple(None if size < 0 else size for size in sizes)
        parameters, quantization = tensor.quantization, None
        if parameters is not None and parameters.scale is not None:
            quantization = Quantization(float(parameters.scale[0]), int(parameters.zeroPoint[0]))
        name = names[index].pop(0) if index in names else (tensor.name or b"").decode()
        infos.append(TensorInfo(name, shape, type_name(tensor), quantization))
    return tuple(infos)


def _sizes(stored: Iterable[int] | None) -> tuple[int, ...]:
    return () if stored is None else tuple(map(int, stored))
