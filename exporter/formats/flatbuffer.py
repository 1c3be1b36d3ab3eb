"""TensorFlow Lite's flatbuffer, which several formats are made of."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError, ModelError, brief
from exporter.formats.base import ExportOptions, StoredTensor, Tensors, recast, serving_module

XNNPACK = "xnnpack"
REFERENCE = "reference"

_SIGNATURE = "serving_default"


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
        self._dtypes = {
            name: detail["dtype"] for name, detail in self._signature.get_input_details().items()
        }

    def _arrays(self, inputs: Tensors) -> dict[str, Any]:
        return {name: inputs[name].astype(dtype) for name, dtype in self._dtypes.items()}

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        outputs: dict[str, Any] = self._signature(**self._arrays(inputs))
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


def _computes_in_half(graph: Any) -> bool:
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return any(tensor.dtype.name in {"float16", "bfloat16"} for tensor in tensors)
