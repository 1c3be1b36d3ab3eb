"""The SavedModel format, for TensorFlow Serving and TensorFlow itself."""

import errno
import os
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from exporter.errors import ConversionError, brief
from exporter.formats.base import ExportOptions, Format, Runner, StoredTensor
from exporter.graph.conversion import serving_module
from exporter.graph.network import Network
from exporter.graph.signature import Interface, TensorInfo, Tensors

_SIGNATURE = "serving_default"


class SavedModel(Format):
    """A folder with the signatures ``serving_default`` and ``serve``."""

    name = "saved_model"
    suffix = ""
    backends = ("tensorflow",)
    # TensorFlow reads its thread counts once a process, before the first operation.
    thread_environment: ClassVar = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    runtime = ("tensorflow",)
    snippets: ClassVar = {"Python": "saved_model.py"}
    imports = ("tensorflow",)

    def export(self, network: Network, path: Path, options: ExportOptions) -> None:
        """Writes the folder; see the base class."""
        import tensorflow as tf

        del options
        try:
            module, function = serving_module(network.signature)
            signatures = {_SIGNATURE: function, "serve": function}
            tf.saved_model.save(module, str(path), signatures=signatures)
        except tf.errors.ResourceExhaustedError as error:
            # TensorFlow raises it on a full disk.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise ConversionError(f"SavedModel export failed: {brief(error)}") from error

    def recognizes(self, path: Path) -> bool:
        """Tells whether a path is a folder with a SavedModel in it."""
        return (path / "saved_model.pb").is_file()

    def read_interface(self, path: Path) -> Interface:
        """Reads the inputs and outputs from the signature."""
        signature = _proto(path).meta_graphs[0].signature_def[_SIGNATURE]
        return _infos(signature.inputs), _infos(signature.outputs)

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the folder; threads are set by ``thread_environment``."""
        del backend, threads
        return _SavedModelRunner(path)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the variables, and the constants of every function."""
        import tensorflow as tf

        checkpoint = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        stored = [
            StoredTensor.of(name, checkpoint.get_tensor(name))
            for name in sorted(checkpoint.get_variable_to_shape_map())
            if checkpoint.get_variable_to_dtype_map()[name] != tf.string
        ]
        for meta_graph in _proto(path).meta_graphs:
            graph = meta_graph.graph_def
            functions = (function.node_def for function in graph.library.function)
            for node in chain(graph.node, *functions):
                if node.op == "Const" and node.attr["dtype"].type != tf.string.as_datatype_enum:
                    constant = tf.make_ndarray(node.attr["value"].tensor)
                    stored.append(StoredTensor.of(node.name, constant))
        return stored


def _proto(path: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())


def _infos(tensors: Mapping[str, Any]) -> tuple[TensorInfo, ...]:
    import tensorflow as tf

    return tuple(
        TensorInfo(
            name,
            tuple(None if axis.size < 0 else axis.size for axis in tensor.tensor_shape.dim),
            tf.dtypes.as_dtype(tensor.dtype).name,
        )
        for name, tensor in sorted(tensors.items())
    )


class _SavedModelRunner:
    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        # The loaded object owns the variables; the signature alone does not keep them alive.
        self._loaded = tf.saved_model.load(str(path))
        self._function = self._loaded.signatures[_SIGNATURE]
        self._specs = self._function.structured_input_signature[1]

    def _tensors(self, inputs: Tensors) -> dict[str, Any]:
        return {
            name: self._tf.convert_to_tensor(inputs[name], dtype=spec.dtype)
            for name, spec in self._specs.items()
        }

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        outputs = self._function(**self._tensors(inputs))
        return {name: value.numpy() for name, value in outputs.items()}

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        tensors = self._tensors(inputs)
        return lambda: self._function(**tensors)
