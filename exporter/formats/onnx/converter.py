"""Converts Keras models to ONNX graphs by tf2onnx, mending its input and its output."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

from exporter.errors import ConversionError, brief
from exporter.formats.base import ExportOptions
from exporter.formats.onnx.recurrent import STAND_IN, Loops, shapes_told_later
from exporter.graph.conversion import signs_compared
from exporter.graph.network import Network
from exporter.graph.recurrent import replaced_loops
from exporter.graph.signature import TensorInfo

LARGE_BYTES = 2**24
"""The least size of a weight that tf2onnx is not given: it takes 36 times the memory."""


def build(network: Network, options: ExportOptions) -> Any:
    """Converts a Keras model to a graph, which may contain operators that ONNX lacks.

    Raises:
        ConversionError: If the converter fails.
    """
    import keras
    import tensorflow as tf
    import tf2onnx

    signature = network.signature
    inputs, outputs = signature.interface(options.batch)
    # These are inputs while the graph is converted, and stored afterwards.
    large = {
        f"large_weight_{index}": variable
        for index, variable in enumerate(network.model.variables)
        if variable.value.dtype.size * variable.value.shape.num_elements() >= LARGE_BYTES
    }
    specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs]
    specs += [tf.TensorSpec(v.shape, v.value.dtype, name=name) for name, v in large.items()]

    loops = Loops(network.layers)

    def serve(*tensors: Any) -> dict[str, Any]:
        named = dict(zip((spec.name for spec in specs), tensors, strict=True))
        weights = [(variable, named[name]) for name, variable in large.items()]
        with (
            keras.StatelessScope(state_mapping=weights),
            _functions_inlined(),
            signs_compared(),
            replaced_loops(network.layers, loops.stand_in),
        ):
            return signature.call(named)

    function = tf.function(serve, input_signature=specs, autograph=False)

    def converted() -> Any:
        with shapes_told_later():
            return tf2onnx.convert.from_function(
                function,
                input_signature=specs,
                opset=options.opset,
                custom_op_handlers={"Erfc": (_erfc_as_erf, []), STAND_IN: (loops.convert, [])},
            )[0]

    try:
        try:
            with _failing_fast():
                proto = converted()
        except Exception:  # An optional pass of its optimizer may have failed.
            proto = converted()
    except Exception as error:  # tf2onnx raises any exception of its rewriters.
        raise ConversionError(f"ONNX conversion failed: {brief(error)}") from error
    captures = function.get_concrete_function().graph.captures
    constants = {inner.name: outer for outer, inner in captures if outer.dtype != "resource"}
    _store(proto, constants | large)
    _fold_transposes(proto)
    _name_batch(proto, (*inputs, *outputs))
    _make_names_canonical(proto)
    return proto


@contextmanager
def _functions_inlined() -> Iterator[None]:
    """Keeps Keras from compiling functions by XLA, which tf2onnx cannot look into.

    Keras computes grouped convolutions by such a function on a CPU.
    """
    import tensorflow as tf

    former = tf.function
    # Keras uses the decorator with and without arguments.
    tf.function = lambda call=None, **_: call or (lambda decorated: decorated)
    try:
        yield
    finally:
        tf.function = former


@contextmanager
def _failing_fast() -> Iterator[None]:
    """Keeps tf2onnx from copying the whole graph before each of its two dozen optimizer passes.

    The copies, which it needs to skip a failed pass, take fifty times the memory of the model.
    """
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    try:
        yield
    finally:
        del os.environ["TF2ONNX_CATCH_ERRORS"]


def _erfc_as_erf(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Rewrites TensorFlow's Erfc, which ONNX lacks, as 1 - Erf (exact GELU emits it)."""
    import numpy as np

    del args
    (output,) = node.output
    dtypes, shapes = [ctx.get_dtype(output)], [ctx.get_shape(output)]
    node.type = "Erf"
    consumers = ctx.find_output_consumers(output)
    (one,) = ctx.make_const(f"{name}_one", np.ones((), dtype=np.float32)).output
    difference = ctx.make_node(
        "Sub", [one, output], dtypes=dtypes, shapes=shapes, name=f"{name}_erfc"
    )
    ctx.replace_all_inputs(output, difference.output[0], ops=consumers)


def _store(proto: Any, constants: Mapping[str, Any]) -> None:
    """Stores the constants that tf2onnx took for inputs.

    These are large weights, and tensors such as those that a Normalization layer derives from its
    weights. The ones that nothing takes belong to recurrent layers, whose operators hold them.
    """
    import onnx

    used = {value.name for value in proto.graph.output} | _used(proto.graph)
    for value in [value for value in proto.graph.input if value.name in constants]:
        proto.graph.input.remove(value)
        if value.name in used:
            array = constants[value.name].numpy()
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))


def _used(graph: Any) -> set[str]:
    """Returns the names that the nodes of a graph take, and those of the graphs within them."""
    bodies = (a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return {name for node in graph.node for name in node.input}.union(*map(_used, bodies))


def _fold_transposes(proto: Any) -> None:
    """Stores constants transposed, where tf2onnx transposes inputs that it does not know."""
    import onnx

    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in [node for node in graph.node if node.op_type == "Transpose"]:
        tensor = constants.get(node.input[0])
        if tensor is None or uses[tensor.name] > 1:
            continue
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        array = onnx.numpy_helper.to_array(tensor).transpose(order)
        graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)


def _name_batch(proto: Any, interface: Iterable[TensorInfo]) -> None:
    """Calls the free first dimension of inputs and outputs ``batch``, not ``unk__42``."""
    infos = {info.name: info for info in interface}
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and infos[value.name].fixed_batch is None:
            dims[0].dim_param = "batch"
        for axis, dim in enumerate(dims):
            if axis and dim.HasField("dim_param"):
                dim.dim_param = f"{value.name}_{axis}"
    # Inferred shapes of activations carry the old names; runtimes infer them again.
    del proto.graph.value_info[:]


def _make_names_canonical(proto: Any) -> None:
    """Replaces names that TensorFlow and tf2onnx number by counters of their process.

    Otherwise two exports of one model would differ in these names.
    """
    fixed = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    renamed: dict[str, str] = {name: name for name in ("", *fixed)}
    taken = set(renamed)

    def canonical(name: str, preferred: str = "") -> str:
        if name not in renamed:
            base = re.sub(r"__\d+", "", preferred or name)
            names = chain([base], (f"{base}_{number}" for number in count(1)))
            renamed[name] = next(each for each in names if each not in taken)
            taken.add(renamed[name])
        return renamed[name]

    def rename(graph: Any, constants: frozenset[str]) -> None:
        constants |= {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            node.output[:] = [canonical(name) for name in node.output]
            # tf2onnx keeps one of equal constants under the name of any, so its use names it.
            node.input[:] = [
                canonical(name, f"{node.output[0]}/{position}" if name in constants else "")
                for position, name in enumerate(node.input)
            ]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g, constants)
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = canonical(value.name)
        graph.initializer.sort(key=lambda tensor: tensor.name)
        for index, node in enumerate(graph.node):
            node.name = f"{node.op_type}_{index}"

    rename(proto.graph, frozenset())
    proto.graph.doc_string = ""  # It names TensorFlow's function with a number.
