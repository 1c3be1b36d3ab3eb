"""Makes ONNX graphs take and give integers, and notes their scales in the metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from exporter.graph.signature import Quantization

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"

_KEY = "quantization"
"""Key of the metadata whose value is JSON: scale and zero point by input or output."""


def make_interface_integer(
    proto: Any, ranges: Mapping[str, tuple[float, float]], io_type: str
) -> None:
    """Makes a graph take and give integers, ``"int8"`` or ``"uint8"``, in place of float32 numbers.

    The graph computes in integers between QuantizeLinear and DequantizeLinear. ``ranges`` are low
    and high ends by input or output.
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
    proto.metadata_props.add(key=_KEY, value=json.dumps(noted))


def interface_quantization(metadata: Mapping[str, str]) -> dict[str, Quantization]:
    """Reads the quantization of inputs and outputs from the metadata of a graph."""
    noted = json.loads(metadata.get(_KEY, "{}"))
    return {name: Quantization(**values) for name, values in noted.items()}


def conversion(
    graph: Any, operator: str, names: tuple[str, str], quantization: Quantization, dtype: str
) -> Any:
    """Makes a node between real numbers and integers, and stores its constants in the graph.

    The caller inserts the node, whose input and output have the two names.
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
    """The inputs and outputs of a graph, and the nodes next to them."""

    def __init__(self, graph: Any, io_type: str) -> None:
        import numpy as np
        import onnx

        self._graph, self._io_type = graph, io_type
        self.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(io_type))

    def take(self, name: str, ends: tuple[float, float]) -> Quantization:
        """Replaces an input by integers, converted for the nodes that need real numbers."""
        real = self._rename(name, f"{name}_real")
        quantizers = (n for n in self._graph.node if n.op_type == QUANTIZE and n.input[0] == real)
        quantizer: Any = next(quantizers, None)
        quantization, same_type = self._quantization(quantizer, ends)
        if same_type:
            self._rename(quantizer.output[0], name)
            self._graph.node.remove(quantizer)
        if any(real in node.input for node in self._graph.node):
            node = conversion(self._graph, DEQUANTIZE, (name, real), quantization, self._io_type)
            self._graph.node.insert(0, node)
        return quantization

    def give(self, name: str, ends: tuple[float, float]) -> Quantization:
        """Replaces an output by integers: those that the graph computes, if it does."""
        real = self._rename(name, f"{name}_real")
        producers = (node for node in self._graph.node if node.output[0] == real)
        dequantizer: Any = next((n for n in producers if n.op_type == DEQUANTIZE), None)
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
        """Returns the quantization of a tensor, and whether the graph has its integers already.

        If the graph has integers of the other type, only the zero point is shifted.
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

    def _rename(self, former: str, name: str) -> str:
        """Renames a tensor in all nodes, and returns the new name."""
        for node in self._graph.node:
            for names in (node.input, node.output):
                names[:] = [name if each == former else each for each in names]
        return name
