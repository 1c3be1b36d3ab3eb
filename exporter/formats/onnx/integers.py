"""ONNX graphs that take and give integers, and what these stand for, noted in the metadata."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from exporter.graph.signature import Interface, Quantization

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"

_KEY = "quantization"
"""Of the metadata; the value is JSON: scale and zero point by input or output."""


def make_interface_integer(
    proto: Any, ranges: Mapping[str, tuple[float, float]], io_type: str
) -> None:
    """Has a graph take and give integers in place of float32 numbers.

    Args:
        proto: The graph, which computes in integers between QuantizeLinear and DequantizeLinear.
        ranges: Low and high ends, by name of the input or output.
        io_type: ``"int8"`` or ``"uint8"``.
    """
    import onnx

    graph = proto.graph
    boundary = _Boundary(graph, io_type)
    noted = {}
    for values, move in ((graph.input, boundary.take), (graph.output, boundary.give)):
        for value in values:
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                value.type.tensor_type.elem_type = boundary.elem_type
                noted[value.name] = asdict(move(value.name, ranges[value.name]))
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(noted)


def interface_quantization(metadata: Mapping[str, str]) -> dict[str, Quantization]:
    """Reads what the integers of inputs and outputs stand for from the metadata of a graph."""
    noted = json.loads(metadata.get(_KEY, "{}"))
    return {name: Quantization(**values) for name, values in noted.items()}


def with_integers(interface: Interface, path: Path) -> Interface:
    """Notes in the interface of a Keras model which of it a graph takes and gives as integers.

    The file is an ``.onnx`` or an ``.ort``.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    noted = interface_quantization(session.get_modelmeta().custom_metadata_map)
    # Types read "tensor(int8)".
    types = {v.name: v.type[7:-1] for v in (*session.get_inputs(), *session.get_outputs())}
    inputs, outputs = (
        tuple(
            replace(info, dtype=types[info.name], quantization=noted[info.name])
            if info.name in noted
            else info
            for info in infos
        )
        for infos in interface
    )
    return inputs, outputs


def conversion(
    graph: Any, operator: str, names: tuple[str, str], quantization: Quantization, dtype: str
) -> Any:
    """Makes an operator between real numbers and integers, and stores its constants in the graph.

    Args:
        graph: Where the operator is to be put.
        operator: ``QUANTIZE`` or ``DEQUANTIZE``.
        names: Of the tensor that it takes, and of the one that it gives.
        quantization: What the integers stand for.
        dtype: Of the integers.
    """
    import numpy as np
    import onnx

    source, target = names
    values = {
        f"{target}_interface_scale": np.float32(quantization.scale),
        f"{target}_interface_zero_point": np.dtype(dtype).type(quantization.zero_point),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )
    return onnx.helper.make_node(operator, [source, *values], [target], f"{target}_interface")


class _Boundary:
    """Where a graph meets its callers."""

    def __init__(self, graph: Any, io_type: str) -> None:
        import numpy as np
        import onnx

        self._graph, self._io_type = graph, io_type
        self.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(io_type))

    def take(self, name: str, ends: tuple[float, float]) -> Quantization:
        """Replaces an input by integers, which are made real for what needs real numbers."""
        real = self._rename(name, f"{name}_real")
        quantizer = self._find(QUANTIZE, lambda node: node.input[0] == real)
        quantization, same_type = self._quantization(quantizer, ends)
        if same_type:
            self._rename(quantizer.output[0], name)
            self._graph.node.remove(quantizer)
        if any(real in node.input for node in self._graph.node):
            node = conversion(self._graph, DEQUANTIZE, (name, real), quantization, self._io_type)
            self._graph.node.insert(0, node)
        return quantization

    def give(self, name: str, ends: tuple[float, float]) -> Quantization:
        """Replaces an output by integers: its own, if they are computed."""
        real = self._rename(name, f"{name}_real")
        dequantizer = self._find(DEQUANTIZE, lambda node: node.output[0] == real)
        quantization, same_type = self._quantization(dequantizer, ends)
        if not same_type:
            node = conversion(self._graph, QUANTIZE, (real, name), quantization, self._io_type)
            self._graph.node.append(node)
            return quantization
        self._rename(dequantizer.input[0], name)
        if not any(real in node.input for node in self._graph.node):
            self._graph.node.remove(dequantizer)
        return quantization

    def _quantization(self, node: Any, ends: tuple[float, float]) -> tuple[Quantization, bool]:
        """Returns that of a tensor, and whether its integers are in the graph already.

        Where they are, but of the other type, the zero point is shifted: nothing else differs.
        """
        import numpy as np
        import onnx

        from exporter.quantization.affine import spread

        if node is None:
            return spread(*ends, self._io_type), False
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in self._graph.initializer}
        scale, zero_point = stored[node.input[1]], stored[node.input[2]]
        shift = np.iinfo(self._io_type).min - np.iinfo(zero_point.dtype).min
        quantization = Quantization(scale.item(), zero_point.item() + int(shift))
        return quantization, zero_point.dtype == self._io_type

    def _find(self, operator: str, condition: Callable[[Any], bool]) -> Any:
        nodes = self._graph.node
        return next((n for n in nodes if n.op_type == operator and condition(n)), None)

    def _rename(self, former: str, name: str) -> str:
        """Gives a tensor another name, wherever an operator takes or gives it."""
        for node in self._graph.node:
            for names in (node.input, node.output):
                names[:] = [name if each == former else each for each in names]
        return name
