"""Plants faults in .tflite and .onnx files, as a broken converter or a damaged disk would."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

TFLITE_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
ONNX_PRODUCTS = ("Conv", "Gemm", "MatMul", "MatMulInteger", "ConvInteger")
FLIPPED = (1, 20)
SMALLEST_KERNEL = 16


def faults(suffix: str, content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields the names of faults and the files that have them; draws where each is planted."""
    makers = {".tflite": _TFLITE, ".onnx": _ONNX}[suffix]
    for number, (name, plant) in enumerate(makers.items()):
        broken = plant(content, np.random.default_rng((seed, number)))
        if broken is not None and broken != content:
            yield name, broken


def _elementwise(array: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a kernel with a fault; the outputs lie along its last axis, or the first."""
    broken = array.copy()
    flat = broken.reshape(-1)
    if kind == "zero":
        broken[...] = 0
    elif kind == "rows":
        broken = broken[rng.permutation(len(broken))]
    elif kind == "channel":
        broken[..., rng.integers(broken.shape[-1])] *= -1
    else:
        chosen = rng.choice(flat.size, min(int(kind), flat.size), replace=False)
        if broken.dtype.kind == "f":
            flat[chosen] *= -(2.0**6)
        else:  # The highest bit but the sign.
            flat[chosen] ^= broken.dtype.type(64)
    return broken


KERNEL_FAULTS = {
    "kernel of zeros": "zero",
    "rows of a kernel permuted": "rows",
    "channel of a kernel negated": "channel",
    **{f"{count} high bits flipped": str(count) for count in FLIPPED},
}
BIAS_FAULTS = ("bias lost", "bias permuted", "element of a bias negated")


def _broken_bias(bias: np.ndarray, fault: str, rng: np.random.Generator) -> np.ndarray:
    if fault == "bias lost":
        return np.zeros_like(bias)
    if fault == "bias permuted":
        return bias[rng.permutation(len(bias))]
    largest, broken = int(np.abs(bias.astype(np.float64)).argmax()), bias.copy()
    broken[largest] *= -1
    return broken


def _planting(
    read: Callable[[bytes], Any],
    write: Callable[[Any], bytes],
    find: Callable[[Any], list[Any]],
    spoil: Callable[[Any, np.random.Generator], None],
) -> Callable[..., bytes | None]:
    """Returns a function that spoils one of the places that are found in a file, if there are any.

    Args:
        read: Parses a file.
        write: Packs what was parsed.
        find: Lists the places where the fault can be, in what was parsed.
        spoil: Changes what was parsed at a place.
    """

    def plant(content: bytes, rng: np.random.Generator) -> bytes | None:
        parsed = read(content)
        places = find(parsed)
        if not places:
            return None
        spoil(places[rng.integers(len(places))], rng)
        return write(parsed)

    return plant


# .tflite


def _tflite(
    find: Callable[[Any], list[Any]], spoil: Callable[[Any, np.random.Generator], None]
) -> Callable[..., bytes | None]:
    from exporter.formats.tflite.packing import pack, unpack

    return _planting(unpack, pack, find, spoil)


def _operators(model: Any) -> list[tuple[Any, Any]]:
    from exporter.formats.tflite.packing import name_of

    return [
        (graph, operator)
        for graph in model.subgraphs
        for operator in graph.operators or ()
        if name_of(model, operator) in TFLITE_PRODUCTS
    ]


def _array(model: Any, tensor: Any) -> np.ndarray | None:
    from exporter.formats.tflite.packing import type_name

    data, kind = model.buffers[tensor.buffer].data, type_name(tensor)
    if data is None or not len(data) or kind == "int4":
        return None
    return np.frombuffer(bytes(data), kind).reshape(tensor.shape)


def _tflite_constant(part: int, fault: str) -> Callable[..., bytes | None]:
    def find(model: Any) -> list[Any]:
        found = []
        for graph, operator in _operators(model):
            if part < len(operator.inputs) and operator.inputs[part] >= 0:
                tensor = graph.tensors[operator.inputs[part]]
                array = _array(model, tensor)
                if (
                    array is not None
                    and array.any()
                    and array.size >= (part == 1) * SMALLEST_KERNEL
                ):
                    found.append((model.buffers[tensor.buffer], array))
        return found

    def spoil(place: Any, rng: np.random.Generator) -> None:
        buffer, array = place
        if part == 2:
            broken = _broken_bias(array, fault, rng)
        else:  # Outputs lie along the first axis.
            kind = KERNEL_FAULTS[fault]
            turned = np.moveaxis(array, 0, -1) if kind == "channel" else array
            broken = _elementwise(turned, kind, rng)
            broken = np.moveaxis(broken, -1, 0) if kind == "channel" else broken
        buffer.data = np.frombuffer(broken.tobytes(), np.uint8)

    return _tflite(find, spoil)


def _tflite_scale(constant: bool) -> Callable[..., bytes | None]:
    def find(model: Any) -> list[Any]:
        indices = (
            (graph, operator.inputs[1] if constant else operator.outputs[0])
            for graph, operator in _operators(model)
        )
        quantized = (graph.tensors[index].quantization for graph, index in indices)
        return [each for each in quantized if each is not None and each.scale is not None]

    def spoil(parameters: Any, rng: np.random.Generator) -> None:
        del rng
        parameters.scale = np.asarray(parameters.scale) * np.float32(2)

    return _tflite(find, spoil)


def _tflite_zero_point() -> Callable[..., bytes | None]:
    from exporter.formats.tflite.packing import type_name

    def find(model: Any) -> list[Any]:
        outputs = (graph.tensors[operator.outputs[0]] for graph, operator in _operators(model))
        return [tensor.quantization for tensor in outputs if type_name(tensor) == "int8"]

    def spoil(parameters: Any, rng: np.random.Generator) -> None:
        del rng
        zero = np.asarray(parameters.zeroPoint)
        parameters.zeroPoint = zero + np.where(zero > 0, -12, 12)

    return _tflite(find, spoil)


def _tflite_activation(old: int, new: int) -> Callable[..., bytes | None]:
    def find(model: Any) -> list[Any]:
        options = (operator.builtinOptions for _, operator in _operators(model))
        return [each for each in options if getattr(each, "fusedActivationFunction", None) == old]

    def spoil(options: Any, rng: np.random.Generator) -> None:
        del rng
        options.fusedActivationFunction = new

    return _tflite(find, spoil)


_TFLITE = {
    **{fault: _tflite_constant(1, fault) for fault in KERNEL_FAULTS},
    **{fault: _tflite_constant(2, fault) for fault in BIAS_FAULTS},
    "scale of a kernel doubled": _tflite_scale(constant=True),
    "scale of an activation doubled": _tflite_scale(constant=False),
    "zero point moved": _tflite_zero_point(),
    "ReLU lost": _tflite_activation(1, 0),
    "ReLU6 for ReLU": _tflite_activation(1, 3),
    "ReLU for none": _tflite_activation(0, 1),
}


# .onnx


def _onnx(
    find: Callable[[Any], list[Any]], spoil: Callable[[Any, np.random.Generator], None]
) -> Callable[..., bytes | None]:
    import onnx

    return _planting(
        onnx.ModelProto.FromString,
        lambda model: model.SerializeToString(),
        lambda model: find(model.graph),
        spoil,
    )


def _dequantizers(graph: Any) -> dict[str, Any]:
    return {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}


def _initializer(graph: Any, name: str) -> Any:
    node = _dequantizers(graph).get(name)
    stored = node.input[0] if node is not None else name
    return next((tensor for tensor in graph.initializer if tensor.name == stored), None)


def _to_array(tensor: Any) -> np.ndarray:
    import onnx

    return onnx.numpy_helper.to_array(tensor)


def _replace_initializer(tensor: Any, array: np.ndarray) -> None:
    import onnx

    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _onnx_kernel(fault: str) -> Callable[..., bytes | None]:
    def find(graph: Any) -> list[Any]:
        nodes = (node for node in graph.node if node.op_type in ONNX_PRODUCTS)
        kernels = (_initializer(graph, node.input[1]) for node in nodes)
        return [k for k in kernels if k is not None and np.prod(k.dims) >= SMALLEST_KERNEL]

    def spoil(tensor: Any, rng: np.random.Generator) -> None:
        array = _to_array(tensor)
        kind, unsigned = KERNEL_FAULTS[fault], array.dtype == np.uint8
        # Unsigned elements have a zero point near the middle.
        middle = np.uint8(128) if unsigned else array.dtype.type(0)
        centred = (array.astype(np.int16) - int(middle)) if unsigned else array
        broken = _elementwise(centred, kind, rng)
        if unsigned:
            broken = np.clip(broken + int(middle), 0, 255).astype(np.uint8)
        _replace_initializer(tensor, broken)

    return _onnx(find, spoil)


def _onnx_bias(fault: str) -> Callable[..., bytes | None]:
    def find(graph: Any) -> list[Any]:
        names = []
        for node in graph.node:
            if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2:
                names.append(node.input[2])
            elif node.op_type == "Add":
                names += node.input
        biases = (_initializer(graph, name) for name in names)
        vectors = (b for b in biases if b is not None and len(b.dims) == 1 and b.dims[0] > 1)
        return [bias for bias in vectors if _to_array(bias).any()]

    def spoil(tensor: Any, rng: np.random.Generator) -> None:
        _replace_initializer(tensor, _broken_bias(_to_array(tensor), fault, rng))

    return _onnx(find, spoil)


def _onnx_scale(constant: bool) -> Callable[..., bytes | None]:
    """Doubles the scale that a kernel, or an activation, is dequantized by."""

    def find(graph: Any) -> list[Any]:
        stored = {tensor.name: tensor for tensor in graph.initializer}
        return [
            stored[node.input[1]]
            for node in _dequantizers(graph).values()
            if (node.input[0] in stored) == constant
        ]

    def spoil(tensor: Any, rng: np.random.Generator) -> None:
        del rng
        _replace_initializer(tensor, _to_array(tensor) * np.float32(2))

    return _onnx(find, spoil)


def _onnx_relu(new: str) -> Callable[..., bytes | None]:
    def find(graph: Any) -> list[Any]:
        return [node for node in graph.node if node.op_type == "Relu"]

    def spoil(node: Any, rng: np.random.Generator) -> None:
        del rng
        node.op_type = new

    return _onnx(find, spoil)


_ONNX = {
    **{fault: _onnx_kernel(fault) for fault in KERNEL_FAULTS},
    **{fault: _onnx_bias(fault) for fault in BIAS_FAULTS},
    "scale of a kernel doubled": _onnx_scale(constant=True),
    "scale of an activation doubled": _onnx_scale(constant=False),
    "ReLU lost": _onnx_relu("Identity"),
    "Softplus for ReLU": _onnx_relu("Softplus"),
}
