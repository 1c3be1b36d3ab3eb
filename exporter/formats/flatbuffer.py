"""TensorFlow Lite's flatbuffer, which several formats are made of."""

from typing import Any

from exporter.errors import ConversionError, ModelError, brief
from exporter.formats.base import ExportOptions, StoredTensor, recast, serving_module


def convert(model: Any, options: ExportOptions) -> bytes:
    """Converts a Keras model, with builtin operators alone.

    Raises:
        ConversionError: If the converter fails.
    """
    import tensorflow as tf

    del options
    try:
        module, function = serving_module(model)
        if _computes_in_half(function.graph):
            # LiteRT has no kernels for that; mixed precision is meant for training.
            module, function = serving_module(recast(model, "float32"))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        # Flex operators would convert, and then fail to run in a plain LiteRT.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
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


def _computes_in_half(graph: Any) -> bool:
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return any(tensor.dtype.name in {"float16", "bfloat16"} for tensor in tensors)
