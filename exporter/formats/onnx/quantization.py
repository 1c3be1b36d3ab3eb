"""The numeric variants of an ONNX graph: half precision, and integers by onnxruntime's quantizer.

On x86 processors without VNNI, onnxruntime multiplies uint8 activations by int8 weights with
VPMADDUBSW, which adds two products in 16 bits: ``2 * 255 * 127`` saturates, and the predictions are
wrong (its guide, "Quantize ONNX Models", and mlas/lib/x86_64/QgemmU8X8KernelAvx2.S). Weights of
uint8, used here, go through kernels that widen to 16 bits before they multiply. Two layers with
uniform weights and positive inputs came to 41 dB on an emulated Haswell with these, as with VNNI;
to 14 dB with int8; and to 33 dB with weights of 7 bits (``reduce_range``), which do not saturate.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import ConversionError, DataError, ExporterError, brief
from exporter.formats.base import ExportOptions
from exporter.formats.onnx.integers import DEQUANTIZE, conversion, make_interface_integer
from exporter.formats.variants import DYNAMIC, FLOAT16, FLOAT32, INT8, QualityRule, Variant
from exporter.graph.signature import Tensors
from exporter.quantization.granularity import SMALL_KERNEL
from exporter.quantization.scheme import IntegerScheme

# Measured on ten trained models (dense layers and their rank-20 factors, two convolutional nets, an
# embedding, attention, an LSTM, two inputs and outputs, regression) with either granularity, every
# kind of range, and integer interfaces. At worst, float16 came to 56 dB, 99.9 % of the classes, and
# no loss; dynamic to 30 dB, 98.1 %, 0.4 points of accuracy, 3.4 % of a squared error; int8 to 26,
# 96.6 %, 0.95 points, 5.4 %. The limits allow about twice that noise, for models that are harder.
# ``drop`` is for squared errors: accuracy cannot fall by more samples than change their class.
# Kernels are of unsigned integers: the range of the weights is spread over all of them. Only where
# each channel has a scale of its own, in QDQ form, does the quantizer make them symmetric. It knows
# no scales of channels in ConvInteger, and DynamicQuantizeLinear takes one range of a whole tensor.
VARIANTS = (
    Variant(FLOAT32),
    Variant(FLOAT16, float_bits=16, rule=QualityRule(snr_db=50, agreement=0.998, drop=0.005)),
    Variant(
        DYNAMIC,
        IntegerScheme("dynamic", symmetric=(), dynamic_range="batch", convolutions="tensor"),
        rule=QualityRule(snr_db=25, agreement=0.97, drop=0.05),
    ),
    Variant(
        INT8,
        IntegerScheme("static", symmetric=("channel",), float_sums=True),
        rule=QualityRule(snr_db=20, agreement=0.95, drop=0.1),
    ),
)

_PRODUCTS = ("Gemm", "MatMul")
"""Operators that onnxruntime computes in integers and returns as floats, or as integers."""

_STATIC = (
    *_PRODUCTS,
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that compute in integers: those with weights, and those that lie between them.

Others (softmax, normalisations, GELU) are a small part of the work, and lose most by it.
"""

_BOUNDED = ("Sigmoid", "Softmax")
"""Operators of which it is known that they give all that lies between 0 and 1."""

_DYNAMIC = ("Conv", "Gather", "MatMul")
"""Not LSTM, though onnxruntime has it: its quantizer gives that weights of int8 in any case."""

_WEIGHTED = (*_PRODUCTS, "Conv", "ConvTranspose", "GRU", "Gather", "LSTM", "RNN")


def check(options: ExportOptions) -> None:
    """Checks what the variant needs, before the conversion, which takes long.

    Raises:
        DataError: If the variant is calibrated, and there is nothing to calibrate it on.
    """
    if options.variant == INT8:
        options.require_calibration()


def as_variant(proto: Any, options: ExportOptions) -> Any:
    """Returns a variant of a float32 graph, under the same names.

    Raises:
        DataError: If the variant is calibrated, and the data do not fit.
        RecipeError: If there is no such method to estimate ranges.
        ConversionError: If the graph cannot be quantized.
    """
    if options.variant == FLOAT32:
        return proto
    make = {FLOAT16: _halved, DYNAMIC: _dynamic, INT8: _static}[options.variant]
    try:
        with tempfile.TemporaryDirectory(prefix="exporter-onnx-") as folder:
            changed = make(proto, options, Path(folder))
    except ExporterError:
        raise
    except Exception as error:  # Quantizers raise whatever they run into.
        raise ConversionError(
            f"The ONNX graph has no {options.variant} variant: {brief(error)}"
        ) from error
    # They may hold former types; runtimes infer them anew.
    del changed.graph.value_info[:]
    return changed


def _halved(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Stores and computes in half precision, between casts of the inputs and the outputs."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del options, folder
    halved = ONNXModel(convert_float_to_float16(proto, keep_io_types=True))
    halved.topological_sort()  # The casts are behind all that they feed.
    return halved.model


def _prepared(proto: Any, folder: Path) -> Any:
    """Has onnxruntime simplify the graph, for any processor, and infer the shapes in it.

    A product and the addition of a bias become one operator, whose sum stays in 32 bits.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = folder / "float.onnx", folder / "prepared.onnx"
    onnx.save(proto, source)
    # The symbolic inference needs SymPy, and tells nothing more of a graph with one free size.
    quant_pre_process(source, target, skip_symbolic_shape=True)
    return onnx.load(target)


def _dynamic(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Quantizes weights, and activations as they come, each batch by its own range."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "quantized.onnx"
    quantize_dynamic(
        _prepared(proto, folder),
        target,
        op_types_to_quantize=list(_DYNAMIC),
        per_channel=options.granularity == "channel",
        weight_type=QuantType.QUInt8,
    )
    quantized = onnx.load(target)
    _shrink_remaining_kernels(quantized.graph)
    return quantized


def _static(proto: Any, options: ExportOptions, folder: Path) -> Any:
    """Quantizes weights and activations, by the ranges that calibration data show."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    cache, target = folder / "ranges.json", folder / "quantized.onnx"
    prepared = _prepared(proto, folder)
    ranges = estimate_ranges(prepared, options.calibration, options.ranges)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    # Ranges that are read, not estimated, are what they are whatever the method.
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
    """Stores as integers the kernels of operators that compute with real numbers alone."""
    import numpy as np
    import onnx

    from exporter.quantization.affine import spread, to_integers

    used = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in used]:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < SMALL_KERNEL or max(array.shape) == array.size:
            continue
        quantization = spread(min(array.min(), 0.0), max(array.max(), 0.0), "uint8")
        integers = to_integers(array, quantization, "uint8")
        stored = f"{tensor.name}_quantized"
        names = stored, tensor.name
        graph.node.insert(0, conversion(graph, DEQUANTIZE, names, quantization, "uint8"))
        graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(integers, stored))


def _float_nodes(graph: Any) -> Iterator[str]:
    """Names the operators that are left in float32, though others of their type are not.

    These are products of two activations, as in attention, and additions of a constant, such as
    the bias of a product of sequences: it would get 8 bits.
    """
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        constant = any(name in constants for name in node.input)
        if (node.op_type == "MatMul" and not constant) or (node.op_type == "Add" and constant):
            yield node.name


def estimate_ranges(
    proto: Any, calibration: Sequence[Tensors], method: str
) -> dict[str, tuple[float, float]]:
    """Runs a float32 graph on calibration data, and estimates the ranges of its activations.

    Args:
        proto: The graph, with the shapes that were inferred in it.
        calibration: Batches of inputs by name.
        method: As ``Observer.range`` takes it.

    Returns:
        Low and high ends, by name of the float32 tensor.

    Raises:
        DataError: If the graph cannot be run on the data, or gives numbers that are not finite.
    """
    import onnx
    import onnxruntime

    from exporter.quantization.ranges import Observer

    graph = proto.graph
    inputs = [value.name for value in graph.input]
    wanted = {value.name for value in (*graph.input, *graph.output)}
    wanted |= {
        name
        for node in graph.node
        if node.op_type in _STATIC
        for name in (*node.input, *node.output)
    }
    values = (*graph.input, *graph.value_info, *graph.output)
    real = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    wanted &= real
    computed = [name for node in graph.node for name in node.output if name in wanted]
    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    del observed.graph.output[:]
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in computed
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    observers = {name: Observer() for name in (*inputs, *computed) if name in wanted}
    for batch in calibration:
        try:
            feeds = {name: batch[name] for name in inputs}
            arrays = dict(zip(computed, session.run(computed, feeds), strict=True))
        except Exception as error:  # onnxruntime's errors share no public base.
            raise DataError(f"The calibration data do not fit the model: {brief(error)}") from error
        for name, observer in observers.items():
            observer.observe(arrays[name] if name in arrays else batch[name])
    bounded = {name for node in graph.node if node.op_type in _BOUNDED for name in node.output}
    return {
        name: (0.0, 1.0) if name in bounded else observer.range(method)
        for name, observer in observers.items()
    }
