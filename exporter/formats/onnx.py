"""ONNX, for onnxruntime on servers, phones and in browsers."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError, brief
from exporter.formats.base import (
    ExportOptions,
    Format,
    Runner,
    Signature,
    StoredTensor,
    Tensors,
)

_BATCH = "batch"


class Onnx(Format):
    """One protobuf with the Keras model's names and a batch dimension called ``batch``."""

    name = "onnx"
    suffix = ".onnx"
    backends = ("cpu",)

    def export(self, model: Any, path: Path, options: ExportOptions) -> None:
        """Converts, checks in full, and opens the result in onnxruntime once.

        tf2onnx does not raise on operators that it lacks; the checker and the runtime do.
        """
        import onnx
        import onnxruntime
        import tensorflow as tf
        import tf2onnx

        signature = Signature(model)
        specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in signature.inputs]

        def serve(*tensors: Any) -> dict[str, Any]:
            return signature(**dict(zip((i.name for i in signature.inputs), tensors, strict=True)))

        # Otherwise tf2onnx copies the whole graph before each of its two dozen optimizer passes, to
        # go on without one that fails: that takes fifty times the memory of the model.
        os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")
        try:
            proto, _ = tf2onnx.convert.from_function(
                tf.function(serve, input_signature=specs),
                input_signature=specs,
                opset=options.opset,
                custom_op_handlers={"Erfc": (_erfc_as_erf, [])},
            )
        except Exception as error:  # tf2onnx raises whatever its rewriters run into.
            raise ConversionError(f"ONNX conversion failed: {brief(error)}") from error
        _name_batch(proto, signature)
        _make_names_canonical(proto)
        content = proto.SerializeToString(deterministic=True)
        try:
            onnx.checker.check_model(proto, full_check=True)
            onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base.
            raise ConversionError(
                f"The ONNX graph cannot be run: {brief(error)} Another --opset may help."
            ) from error
        path.write_bytes(content)

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the file in onnxruntime's CPU provider."""
        del backend
        return _OnnxRunner(path, threads)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the initializers and the constant nodes."""
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


def _erfc_as_erf(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Rewrites TensorFlow's Erfc, which ONNX lacks, as 1 - Erf (exact GELU emits it)."""
    import numpy as np

    del args
    dtype = ctx.get_dtype(node.output[0])
    shape = ctx.get_shape(node.output[0])
    node.type = "Erf"
    consumers = ctx.find_output_consumers(node.output[0])
    one = ctx.make_const(f"{name}_one", np.ones((), dtype=np.float32))
    difference = ctx.make_node(
        "Sub", [one.output[0], node.output[0]], dtypes=[dtype], shapes=[shape], name=f"{name}_erfc"
    )
    ctx.replace_all_inputs(node.output[0], difference.output[0], ops=consumers)


def _name_batch(proto: Any, signature: Signature) -> None:
    """Calls the free first dimension of inputs and outputs ``batch``, not ``unk__42``."""
    infos = {info.name: info for info in (*signature.inputs, *signature.outputs)}
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and infos[value.name].fixed_batch is None:
            dims[0].dim_param = _BATCH
        for axis, dim in enumerate(dims):
            if axis and dim.HasField("dim_param"):
                dim.dim_param = f"{value.name}_{axis}"
    # Inferred shapes of intermediate values carry the old names; runtimes infer them anew.
    del proto.graph.value_info[:]


def _make_names_canonical(proto: Any) -> None:
    """Renames what tf2onnx numbered from a counter of its own process.

    Two exports of one model would otherwise differ in names alone.
    """
    fixed = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    renamed: dict[str, str] = {}
    taken = set(fixed)

    def canonical(name: str) -> str:
        if not name or name in fixed:
            return name
        if name not in renamed:
            base = re.sub(r"__\d+", "", name)
            unique, count = base, 1
            while unique in taken:
                unique, count = f"{base}_{count}", count + 1
            taken.add(unique)
            renamed[name] = unique
        return renamed[name]

    def rename(graph: Any) -> None:
        for tensor in graph.initializer:
            tensor.name = canonical(tensor.name)
        for node in graph.node:
            node.input[:] = [canonical(name) for name in node.input]
            node.output[:] = [canonical(name) for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = canonical(value.name)
        for index, node in enumerate(graph.node):
            node.name = f"{node.op_type}_{index}"

    rename(proto.graph)


class _OnnxRunner:
    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._types = {value.name: value.type for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def _arrays(self, inputs: Tensors) -> dict[str, Any]:
        return {name: inputs[name] for name in self._types}

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        values = self._session.run(self._outputs, self._arrays(inputs))
        return dict(zip(self._outputs, values, strict=True))

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        binding = self._session.io_binding()
        for name, array in self._arrays(inputs).items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name)
        return lambda: self._session.run_with_iobinding(binding)
