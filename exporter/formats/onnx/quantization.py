"""Makes the variants of an ONNX graph: half precision, and integers by onnxruntime's quantizer.

On x86 processors without VNNI, onnxruntime multiplies uint8 activations by int8 weights with
VPMADDUBSW, which adds two products in 16 bits: ``2 * 255 * 127`` saturates, and the predictions are
wrong (its guide, "Quantize ONNX Models", and mlas/lib/x86_64/QgemmU8X8KernelAvx2.S). Kernels for
weights of uint8, used here, widen to 16 bits before they multiply. Two layers with uniform weights
and positive inputs reached 41 dB on an emulated Haswell with uint8, as with VNNI; 14 dB with int8;
and 33 dB with weights of 7 bits (``reduce_range``), which do not saturate.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exporter.disk import scratch_folder
from exporter.errors import ConversionError, DataError, ExporterError, brief
from exporter.formats.base import ExportOptions
from exporter.formats.batches import whole_batches
from exporter.formats.onnx.integers import DEQUANTIZE, conversion, make_interface_integer
from exporter.formats.variants import DYNAMIC, FLOAT16, FLOAT32, INT8, QualityRule, Variant
from exporter.graph.signature import Tensors
from exporter.quantization.granularity import SMALL_KERNEL
from exporter.quantization.scheme import IntegerScheme, KernelFormat

# The rules were measured on ten trained models (dense layers and their rank-20 factors, two
# convolutional nets, an embedding, attention, an LSTM, two inputs and outputs, regression) with
# both granularities, all ranges, and integer interfaces. The worst were: float16 56 dB, 99.9 % of
# the classes, no loss; dynamic 30 dB, 98.1 %, 0.4 points of accuracy, 3.4 % of a squared error;
# int8 26 dB, 96.6 %, 0.95 points, 5.4 %. The limits allow about twice that noise, for hard models.
# ``drop`` is for squared errors: accuracy cannot fall by more samples than change their class.
# Kernels are of unsigned integers, over which the range of the weights is spread. The quantizer
# makes them symmetric only in QDQ form with a scale for each channel. DynamicQuantizeLinear takes
# one range of a whole tensor.
VARIANTS = (
    Variant(FLOAT32),
    Variant(FLOAT16, float_bits=16, rule=QualityRule(snr_db=50, agreement=0.998, drop=0.005)),
    Variant(
        DYNAMIC,
        IntegerScheme(
            "dynamic", symmetric=(), dynamic_range="batch", convolutions=KernelFormat("channel")
        ),
        rule=QualityRule(snr_db=25, agreement=0.97, drop=0.05),
    ),
    Variant(
        INT8,
        IntegerScheme("static", symmetric=("channel",), signed=False, float_sums=True),
        rule=QualityRule(snr_db=20, agreement=0.95, drop=0.1),
    ),
)

_PRODUCTS = ("Gemm", "MatMul")
"""Operators of integers whose results onnxruntime returns as floats, or as integers."""

_POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool")
_MOVES = ("Concat", "Flatten", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose")
_OTHERS = ("Add", "Clip", "Conv", "ConvTranspose", "Gather", "Relu", "Unsqueeze")
_STATIC = (*_PRODUCTS, *_POOLS, *_MOVES, *_OTHERS)
"""Operators that compute in integers: those with weights, and those that lie between them.

The others (softmax, normalisations, GELU) are a small part of the work, and lose most by it.
"""

_BOUNDED = ("Sigmoid", "Softmax")
"""Operators whose results fill the range from 0 to 1."""

_DYNAMIC = ("Conv", "Gather", "MatMul")
"""Operators that are quantized dynamically; LSTM is not, for it always gets weights of int8."""

_WEIGHTED = (*_PRODUCTS, "Conv", "ConvTranspose", "GRU", "Gather", "LSTM", "RNN")


def as_variant(proto: Any, options: ExportOptions) -> Any:
    """Returns a variant of a float32 graph, under the same names.

    Raises:
        DataError: If the variant is calibrated, and the data do not fit.
        RecipeError: If the method to estimate ranges is unknown.
        ConversionError: If the graph cannot be quantized.
    """
    if options.variant == FLOAT32:
        return proto
    make = {FLOAT16: _halved, DYNAMIC: _dynamic, INT8: _static}[options.variant]
    try:
        with scratch_folder() as folder:
            changed = make(proto, options, folder)
    except ExporterError:
        raise
    except Exception as error:  # Quantizers raise any exception.
        raise ConversionError(
            f"The ONNX graph has no {options.variant} variant: {brief(error)}"
        ) from error
    # These may contain former types; runtimes infer them again.
    del changed.graph.value_info[:]
    return changed


def _halved(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Stores and computes in half precision, between casts of the inputs and the outputs."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del options, folder
    halved = ONNXModel(convert_float_to_float16(proto, keep_io_types=True))
    halved.topological_sort()  # The casts stand behind the nodes that they feed.
    return halved.model


def _prepared(proto: Any, folder: Path) -> Any:
    """Returns the graph as onnxruntime simplifies it for any processor, with inferred shapes.

    A product and the addition of a bias become one operator, whose sum stays in 32 bits.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = folder / "float.onnx", folder / "prepared.onnx"
    onnx.save(proto, source)
    # The symbolic inference needs SymPy, and finds no more in a graph with one free size.
    quant_pre_process(source, target, skip_symbolic_shape=True)
    return onnx.load(target)


def _dynamic(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Quantizes weights; the graph quantizes activations, each batch by its own range."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, target = _prepared(proto, folder), folder / "quantized.onnx"
    quantize_dynamic(
        prepared,
        target,
        op_types_to_quantize=list(_DYNAMIC),
        per_channel=options.granularity == "channel",
        weight_type=QuantType.QUInt8,
    )
    quantized = onnx.load(target)
    _scale_channels(quantized.graph, prepared.graph)
    _shrink_remaining_kernels(quantized.graph)
    return quantized


def _scale_channels(graph: Any, prepared: Any) -> None:
    """Gives kernels of convolutions a scale for each channel, where the quantizer gave one for all.

    ConvInteger takes a single zero point for its kernel, but scales are multiplied behind it.
    """
    import numpy as np
    from onnx import numpy_helper

    kernels = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.initializer}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    names = {node.input[1] for node in graph.node if node.op_type == "ConvInteger"}
    for name in (name.removesuffix("_quantized") for name in names):
        kernel = kernels[name]
        # A subnormal step would be taken for zero.
        span = np.maximum(abs(kernel).max(axis=tuple(range(1, kernel.ndim)), keepdims=True), 1e-30)
        step = (span / 127).astype(np.float32)
        arrays = {
            "quantized": (np.rint(kernel / step) + 128).astype(np.uint8),
            "scale": step[..., 0],  # (channels, 1, 1): results have no axis of kernels' inputs.
            "zero_point": np.asarray(128, np.uint8),
        }
        for part, array in arrays.items():
            stored[f"{name}_{part}"].CopyFrom(numpy_helper.from_array(array, f"{name}_{part}"))


def _static(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Quantizes weights and activations, by the ranges that calibration data show."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    cache, target = folder / "ranges.json", folder / "quantized.onnx"
    prepared = _prepared(proto, folder)
    ranges = _estimate_ranges(prepared, options.calibration, options.ranges)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    # The method has no effect on ranges that are read from a file.
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), cache)
    quantize_static(
        prepared,
        target,
        calibration_cache_path=cache,
        op_types_to_quantize=list(_STATIC),
        nodes_to_exclude=list(_float_nodes(prepared.graph)),
        per_channel=options.granularity == "channel",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
        # Their sums stay in float32 where no other integer operator takes them.
        extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
    )
    quantized = onnx.load(target)
    if options.io_type != FLOAT32:
        make_interface_integer(quantized, ranges, options.io_type)
    _shrink_remaining_kernels(quantized.graph)
    return quantized


def _shrink_remaining_kernels(graph: Any) -> None:
    """Stores as integers the kernels of operators that only compute with real numbers."""
    import numpy as np
    import onnx

    from exporter.quantization.affine import spread, to_integers

    used = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in used]:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < SMALL_KERNEL or max(array.shape) == array.size:
            continue
        quantization = spread(min(array.min(), 0.0), max(array.max(), 0.0), "uint8")
        integers, stored = to_integers(array, quantization, "uint8"), f"{tensor.name}_quantized"
        names = stored, tensor.name
        graph.node.insert(0, conversion(graph, DEQUANTIZE, names, quantization, "uint8"))
        graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(integers, stored))


def _float_nodes(graph: Any) -> Iterator[str]:
    """Yields the names of nodes that stay in float32, though others of their type do not.

    These are products of two activations, as in attention; additions of a constant, such as the
    bias of a product of sequences, which would get 8 bits; and of a mask to what a softmax takes.
    """
    logits = {name for node in graph.node if node.op_type == "Softmax" for name in node.input}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        constant = any(name in constants for name in node.input)
        masks = node.op_type == "Add" and node.output[0] in logits
        biases = node.op_type == "Add" and constant
        if (node.op_type == "MatMul" and not constant) or biases or masks:
            yield node.name


def observable(proto: Any, names: Sequence[str]) -> Any:
    """Opens a graph, as it is and not optimized, that gives tensors which its nodes compute."""
    import onnx
    import onnxruntime

    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _estimate_ranges(
    proto: Any, calibration: Sequence[Tensors], method: str
) -> dict[str, tuple[float, float]]:
    """Estimates the ranges of activations, low and high ends by name, on calibration data.

    Raises:
        DataError: If the graph cannot be run on the data, or gives numbers that are not finite.
    """
    import onnx

    from exporter.quantization.ranges import Observer

    graph = proto.graph
    inputs = [value.name for value in graph.input]
    wanted = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        if node.op_type in _STATIC:
            wanted.update(node.input, node.output)
    values = (*graph.input, *graph.value_info, *graph.output)
    wanted &= {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    computed = [name for node in graph.node for name in node.output if name in wanted]
    session = observable(proto, computed)
    sizes = (value.shape[0] for value in session.get_inputs() if value.shape)
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    observers = {name: Observer() for name in (*inputs, *computed) if name in wanted}
    for part in (part for batch in calibration for part in whole_batches(batch, fixed)):
        try:
            feeds = {name: part[name] for name in inputs}
            arrays = dict(zip(computed, session.run(computed, feeds), strict=True))
        except Exception as error:  # onnxruntime's errors share no public base.
            raise DataError(f"The calibration data do not fit the model: {brief(error)}") from error
        for name, observer in observers.items():
            observer.observe(arrays[name] if name in arrays else part[name])
    bounded = {name for node in graph.node if node.op_type in _BOUNDED for name in node.output}
    return {
        name: (0.0, 1.0) if name in bounded else observer.range(method)
        for name, observer in observers.items()
    }
