"""TensorFlow Lite's flatbuffer, which several formats are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from exporter.errors import ConversionError, ModelError, brief
from exporter.formats.base import (
    ExportOptions,
    Interface,
    Quantization,
    Signature,
    StoredTensor,
    TensorInfo,
)
from exporter.formats.flatbuffer_quantization import check, is_quantized, quantize
from exporter.formats.keras_models import recast, serving_module
from exporter.formats.variants import FLOAT16


def convert(model: Any, options: ExportOptions) -> bytes:
    """Converts a Keras model to a variant, with builtin operators alone.

    Raises:
        ConversionError: If the converter fails, or the model has no such variant.
        DataError: If the variant is calibrated, and there is nothing to calibrate it on.
    """
    check(options)
    content = _convert(model, half=options.variant == FLOAT16)
    return quantize(content, options) if is_quantized(options.variant) else content


def _convert(model: Any, *, half: bool) -> bytes:
    import tensorflow as tf

    try:
        module, function = serving_module(model)
        if _computes_in_half(function.graph):
            # LiteRT has no kernels for that; mixed precision is meant for training.
            module, function = serving_module(recast(model, "float32"))
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
            flat = StoredTensor.of(tensor.Name().decode(), data)
            stored.append(StoredTensor(flat.name, shape, flat.nbytes, flat.digest))
    return stored


def interface(content: bytes, model: Any) -> Interface:
    """Returns inputs and outputs of a model as its flatbuffer has them: some may be integers."""
    from ai_edge_litert import schema_py_generated as schema

    flatbuffer = schema.Model.GetRootAs(content, 0)
    definition = flatbuffer.SignatureDefs(0)
    graph = flatbuffer.Subgraphs(definition.SubgraphIndex())
    inputs = map(definition.Inputs, range(definition.InputsLength()))
    outputs = map(definition.Outputs, range(definition.OutputsLength()))
    signature = Signature(model)
    return _stored(signature.inputs, graph, inputs), _stored(signature.outputs, graph, outputs)


def _stored(
    infos: Sequence[TensorInfo], graph: Any, entries: Iterable[Any]
) -> tuple[TensorInfo, ...]:
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {
        schema.TensorType.INT8: "int8",
        schema.TensorType.UINT8: "uint8",
        schema.TensorType.INT16: "int16",
    }
    tensors = {entry.Name().decode(): graph.Tensors(entry.TensorIndex()) for entry in entries}

    def stored(info: TensorInfo) -> TensorInfo:
        tensor = tensors[info.name]
        parameters = tensor.Quantization()
        if parameters is None or not parameters.ScaleLength():
            return info
        quantization = Quantization(float(parameters.Scale(0)), int(parameters.ZeroPoint(0)))
        return replace(info, dtype=dtypes[tensor.Type()], quantization=quantization)

    return tuple(map(stored, infos))


def _computes_in_half(graph: Any) -> bool:
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return any(tensor.dtype.name in {"float16", "bfloat16"} for tensor in tensors)
