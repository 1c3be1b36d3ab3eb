"""Makes the numeric variants of a float32 flatbuffer with LiteRT Quantizer.

The quantizer is given the ranges of activations, which are estimated as for every other format. It
leaves operators that it does not know in float32; that is an error only if their weights are large.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.errors import ConversionError, DataError, brief
from exporter.formats.base import ExportOptions
from exporter.formats.batches import whole_batches
from exporter.formats.tflite.packing import operator_name, pack, type_name, unpack
from exporter.formats.tflite.runner import fixed_batch, observable
from exporter.formats.variants import DYNAMIC, FLOAT16, FLOAT32, INT4, INT8, INT16X8, MIXED, Variant
from exporter.formats.variants import QualityRule as Rule
from exporter.graph.layers import Probabilities
from exporter.quantization.granularity import SMALL_KERNEL
from exporter.quantization.scheme import IntegerScheme, KernelFormat, levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The rules were measured on eight models: classifiers of the embedded digits (dense 784-1024x5-10
# and its rank-20 factors, convolutions with batch normalization, depthwise ones, attention), an
# embedding, a regression, and a classifier with regression and two inputs; at both granularities
# and all ranges but ``entropy``, which ruined two of them (below 3 dB) and must fail. The least SNR
# and agreement: float16 58 dB, 99.9 %; dynamic 22 dB, 98.4 %; int16x8 24 dB, 99.2 %; int8 18 dB,
# 97.7 %; int4 13.9 dB, 90.5 %. The least SNR in 8 bits is that of the rank-20 factors without a
# gauge. The error of a regression grew by at most 0.5 % in dynamic, 0.6 % in int16x8 and 5.4 % in
# int8; by 10 to 72 % in int4, which does not suit regressions. A scale of the first kernel that is
# twice the right one, a mild fault for ReLU networks, left 12.3 dB in int8.
# LiteRT needs a scale for each channel in some convolutions: it refuses grouped ones without, and
# reads as many scales as there are channels in depthwise ones, even if only one is stored.
_DYNAMIC = IntegerScheme(
    "dynamic", convolutions=KernelFormat("channel"), smallest_kernel=SMALL_KERNEL
)
_STATIC = IntegerScheme("static")
_STATIC_16, _DYNAMIC_4 = replace(_STATIC, activation_bits=16), replace(_DYNAMIC, weight_bits=4)
VARIANTS = (
    Variant(FLOAT32),
    Variant(FLOAT16, float_bits=16, rule=Rule(snr_db=45, agreement=0.99, drop=0.01)),
    Variant(DYNAMIC, _DYNAMIC, rule=Rule(snr_db=18, agreement=0.97, drop=0.03)),
    Variant(INT8, _STATIC, rule=Rule(snr_db=15, agreement=0.94, drop=0.1)),
    Variant(INT16X8, _STATIC_16, rule=Rule(snr_db=18, agreement=0.97, drop=0.03)),
    Variant(INT4, _DYNAMIC_4, rule=Rule(snr_db=10, agreement=0.85, drop=0.1)),
    # At most as much noise as in int8.
    Variant(MIXED, replace(_DYNAMIC_4, mixed=True), rule=Rule(snr_db=15, agreement=0.94, drop=0.1)),
)

_SCHEMES = {variant.name: variant.scheme for variant in VARIANTS if variant.scheme}
_IO_TYPES = {INT8: (FLOAT32, "int8", "uint8"), INT16X8: (FLOAT32,)}

_FLOAT32_BYTES = 4
_KERNEL_STEPS = 127
_ELEMENTWISE = ("ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "RESHAPE", "EXPAND_DIMS", "TRANSPOSE")
_FAR_OFF = 1e4
"""Magnitude from which on a constant of an elementwise operator is no number of the data's."""

_ON_STEP = 1e-3
"""Part of a step by which float32 may miss it."""
_SUMMING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_IN_CELLS = ("ADD", "LOGISTIC", "MUL", "RELU", "SPLIT", "STRIDED_SLICE", "SUB", "TANH")
_PROBABILITIES: dict[str, Probabilities] = {"SOFTMAX": "categorical", "LOGISTIC": "bernoulli"}
_FINER = 128
"""Most steps of an output within one of the sums it is computed from; XNNPACK takes up to 256."""

_Ranges = Mapping[str, dict[str, Any]]
"""Arrays ``min`` and ``max`` by the name of a tensor, as the quantizer takes them."""


def check(options: ExportOptions) -> None:
    """Checks the needs of the variant before the conversion, which takes long.

    Raises:
        DataError: If the variant is calibrated, and there is nothing to calibrate it on.
        ConversionError: If the variant has no inputs and outputs of the type that was asked for.
    """
    variant = options.variant
    if variant not in _IO_TYPES:
        return
    options.require_calibration()
    if options.io_type not in _IO_TYPES[variant]:
        raise ConversionError(
            f"Variant {variant!r} takes and gives {' or '.join(_IO_TYPES[variant])}. "
            f"Received: {options.io_type}."
        )


def needs_observation(options: ExportOptions) -> bool:
    """Tells whether the variant needs the ranges of activations."""
    return options.variant in _IO_TYPES


def quantize(content: bytes, options: ExportOptions) -> bytes:
    """Quantizes a float32 flatbuffer to a variant other than float16.

    Raises:
        DataError: If activations are infinite or NaN on the calibration samples.
        ConversionError: If the quantizer fails, or does not know the operator of a large kernel.
    """
    try:
        scheme = _SCHEMES[options.variant]
        dynamic = scheme.activations == "dynamic"
        make = _with_integer_weights if dynamic else _with_integer_activations
        quantized = make(content, options, scheme)
    except (ConversionError, DataError):
        raise
    except Exception as error:  # The quantizer and the interpreter raise any exception.
        raise ConversionError(
            f"The flatbuffer has no {options.variant} variant: {brief(error)}"
        ) from error
    model = unpack(quantized)
    _agree_on_outputs(model, unpack(content), options.io_type)
    _refuse_float_kernels(model, options.variant)
    _take_integers(model)
    _type_unused_parts(model)
    return pack(model)


def _with_integer_weights(content: bytes, options: ExportOptions, scheme: IntegerScheme) -> bytes:
    """Quantizes weights; LiteRT quantizes activations as it runs, each by its own range."""
    from litert_quantizer import qtyping as q
    from litert_quantizer.quantizer import Quantizer

    quantizer = Quantizer(content)

    def configure(results: str, operator: Any, bits: int, granularity: Any) -> None:
        config = q.OpQuantizationConfig(
            weight_tensor_config=q.TensorQuantizationConfig(bits, granularity=granularity),
            compute_precision=q.ComputePrecision.INTEGER,
            # Smaller kernels save few bytes, and their operators are slower in integers.
            min_weight_elements=scheme.smallest_kernel,
        )
        quantizer.update_quantization_recipe(results, operator, config)

    names, by_channel = q.TFLOperationName, q.QuantGranularity.CHANNELWISE
    granularities = {names.CONV_2D: by_channel, names.FULLY_CONNECTED: _granularity(options)}
    configure(".*", names.ALL_SUPPORTED, 8, by_channel)
    # ``LayerKind.in_four_bits`` names the layers of these operators.
    for operator, granularity in granularities.items():
        configure(".*", operator, 8 if scheme.mixed else scheme.weight_bits, granularity)
    if scheme.mixed:
        by_tensor = options.granularity == "tensor"
        for operator, result in _on_steps(content, scheme.weight_bits, by_tensor=by_tensor):
            kind = names[operator]
            configure(f"^{re.escape(result)};", kind, scheme.weight_bits, granularities[kind])
    return _result(quantizer, _with_integer_tables(quantizer, content))


def _on_steps(content: bytes, bits: int, *, by_tensor: bool) -> Iterator[tuple[str, str]]:
    """Yields operators whose kernel has so few bits already, and their results, by name.

    Kernels that were rounded lie on the steps of their range; no other kernel does.
    """
    import numpy as np

    model = unpack(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = _operator_name(model, operator)
            if name not in ("CONV_2D", "FULLY_CONNECTED"):
                continue
            kernel = _constant(model, graph.tensors[operator.inputs[1]])
            if kernel is None:
                continue
            kernel = kernel.reshape(len(kernel), -1)
            shared = by_tensor and name == "FULLY_CONNECTED"
            span = np.abs(kernel).max(axis=None if shared else 1, keepdims=True)
            steps = kernel / np.where(span > 0, span, 1) * levels(bits - 1)
            if np.abs(steps - np.rint(steps)).max() < _ON_STEP:
                yield name, graph.tensors[operator.outputs[0]].name.decode()


def _with_integer_activations(
    content: bytes, options: ExportOptions, scheme: IntegerScheme
) -> bytes:
    """Quantizes weights, and activations by the ranges that calibration data show."""
    from litert_quantizer import qtyping as q
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.quantizer import Quantizer

    ranges = _observed_ranges(content, options, scheme.activation_bits)
    if scheme.activation_bits == 8:
        content = _with_room_for_biases(content, ranges)
    quantizer, bits = Quantizer(content), (scheme.activation_bits, scheme.weight_bits)
    every, dense = q.TFLOperationName.ALL_SUPPORTED, q.TFLOperationName.FULLY_CONNECTED
    quantizer.add_static_config(".*", every, *bits, _granularity(options))
    if options.dense_by_tensor:
        quantizer.add_static_config(".*", dense, *bits, q.QuantGranularity.TENSORWISE)
    unsigned = q.OpQuantizationConfig(
        activation_tensor_config=q.TensorQuantizationConfig(
            num_bits=8, symmetric=False, dtype=q.TensorDataType.UINT
        ),
        compute_precision=q.ComputePrecision.INTEGER,
    )
    for operator in (q.TFLOperationName.INPUT, q.TFLOperationName.OUTPUT):
        if options.io_type == FLOAT32:
            quantizer.update_quantization_recipe(
                ".*", operator, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
        elif options.io_type == "uint8":
            quantizer.update_quantization_recipe(".*", operator, unsigned)
    _keep_floats(quantizer, content, scheme.activation_bits)
    return _result(quantizer, {**ranges, **_with_integer_tables(quantizer, content)})


def _keep_floats(quantizer: Any, content: bytes, bits: int) -> None:
    """Leaves operators in float32 that would spoil what they compute in integers."""
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import TFLOperationName

    model = unpack(content)
    for graph in model.subgraphs:
        states = _of_cells(model, graph) if bits == 8 else ()
        for operator in (*_before_indices(model, graph), *_masking(model, graph), *states):
            name = _operator_name(model, operator)
            if name in TFLOperationName.__members__:
                result = graph.tensors[operator.outputs[0]].name.decode()
                quantizer.update_quantization_recipe(
                    f"^{re.escape(result)};",
                    TFLOperationName[name],
                    algorithm_key=AlgorithmName.NO_QUANTIZE,
                )


def _before_indices(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators whose results become integers, as the index of a category does.

    Rounded to a step, and then cut, it would be another index.
    """
    floats = {i for i, tensor in enumerate(graph.tensors) if type_name(tensor) == FLOAT32}
    wanted: set[int] = set()
    for operator in reversed(graph.operators):
        name = _operator_name(model, operator)
        if name == "CAST" and operator.outputs[0] not in floats:
            wanted.update(operator.inputs)
        elif name not in ("CAST", *_SUMMING) and wanted & floats & set(operator.outputs):
            wanted.update(operator.inputs)
            yield operator


def _masking(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators that mask logits by a number far off, until a softmax takes them.

    The number would have a scale of its own, or share one, in which the logits are a single step.
    """
    import numpy as np

    masked: set[int] = set()
    for operator in graph.operators:
        if _operator_name(model, operator) not in _ELEMENTWISE:
            continue
        given = [_constant(model, graph.tensors[index]) for index in operator.inputs]
        far = any(x is not None and np.abs(x).max(initial=0) >= _FAR_OFF for x in given)
        if far or masked & set(operator.inputs):
            masked.update(operator.outputs)
            yield operator


def _of_cells(model: Any, graph: Any) -> Iterator[Any]:
    """Yields operators that make the states of recurrent layers of the products of each step.

    Their errors add up from step to step, and a small state falls on few of the 256 steps that
    integers have for a tanh. A trained LSTM of 16 units went from 10 to 20 dB.
    """
    products: dict[int, list[Any]] = {}
    for operator in graph.operators:
        if _operator_name(model, operator) in _SUMMING:
            products.setdefault(graph.tensors[operator.inputs[1]].buffer, []).append(operator)
    results: set[int] = set()
    for first, *others in products.values():
        after = set(first.outputs)
        for operator in graph.operators if others else ():
            if after & set(operator.inputs):
                after.update(operator.outputs)
        if any(after & set(other.inputs) for other in others):
            results.update(each.outputs[0] for each in (first, *others))
    for operator in graph.operators:
        if results & set(operator.inputs) and _operator_name(model, operator) in _IN_CELLS:
            results.update(operator.outputs)
            yield operator


def _with_integer_tables(quantizer: Any, content: bytes) -> _Ranges:
    """Configures tables of constants, as of embeddings, for 8 bits, and returns their ranges.

    Otherwise they would get the bits of an activation: the quantizer does not know that they are
    weights.
    """
    from litert_quantizer.qtyping import TFLOperationName

    ranges, model = {}, unpack(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if _operator_name(model, operator) != "GATHER":
                continue
            table = graph.tensors[operator.inputs[0]]
            values = _constant(model, table)
            if values is not None:
                result = graph.tensors[operator.outputs[0]].name.decode()
                quantizer.add_static_config(f"^{re.escape(result)};", TFLOperationName.GATHER, 8, 8)
                ends = {"min": values.min(keepdims=True), "max": values.max(keepdims=True)}
                ranges[table.name.decode()] = ends
    return ranges


def _granularity(options: ExportOptions) -> Any:
    from litert_quantizer.qtyping import QuantGranularity

    names = {"tensor": QuantGranularity.TENSORWISE, "channel": QuantGranularity.CHANNELWISE}
    return names[options.granularity]


def _result(quantizer: Any, ranges: _Ranges) -> bytes:
    # It opens an interpreter that warns of its own options, and draws progress bars.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        result = quantizer.quantize(
            ranges or None, enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)


def _observed_ranges(content: bytes, options: ExportOptions, bits: int) -> _Ranges:
    """Estimates the ranges of activations on the calibration data, by the names of tensors."""
    import numpy as np

    from exporter.quantization.ranges import Observer, relevant

    model = unpack(content)
    (graph, *bodies) = model.subgraphs
    if bodies:
        raise ConversionError(
            "Activations cannot be observed within loops, and only recurrent layers can write out "
            "their steps. Leave out the variants that need calibration, or replace the layer."
        )
    interpreter = observable(content)
    run = interpreter.get_signature_runner()
    details = run.get_input_details()
    fixed = fixed_batch(details)
    activations = [*graph.inputs, *(index for op in graph.operators for index in op.outputs)]
    observers = {i: Observer() for i in activations if type_name(graph.tensors[i]) == FLOAT32}
    logits = _logits(model, graph)
    for batch in options.calibration:
        seen: dict[int, list[Any]] = {index: [] for index in observers}
        for part in whole_batches(batch, fixed):
            run(**{name: part[name].astype(detail["dtype"]) for name, detail in details.items()})
            for index, values in seen.items():
                values.append(interpreter.get_tensor(index))
        for index, observer in observers.items():
            stacked = np.stack(seen[index])
            kind = logits.get(index)
            observer.observe(relevant(stacked, kind, bits) if kind else stacked)
    found = {index: observer.range(options.ranges, bits) for index, observer in observers.items()}
    ranges = {}
    for index, (low, high) in _with_steps_of_sums(model, graph, found).items():
        # Any scale suits zeros, unless the biases of the next layer overflow by it.
        ends = {"min": low, "max": 1.0 if low == high else high}
        arrays = {end: np.array([value], np.float32) for end, value in ends.items()}
        ranges[graph.tensors[index].name.decode()] = arrays
    return ranges


def _with_room_for_biases(content: bytes, ranges: _Ranges) -> bytes:
    """Widens ranges of kernels, and of their channels, in whose steps a bias overflows 32 bits.

    A bias has the steps of the input times those of the kernel, which are next to nothing where all
    weights are, as for dead units. One weight is moved, by less than a thousandth of the bias at
    the largest input.
    """
    import numpy as np

    model, changed = unpack(content), False
    for graph in model.subgraphs:
        for operator in graph.operators:
            if _operator_name(model, operator) not in _SUMMING or len(operator.inputs) < 3:
                continue
            given, kernel, bias = (graph.tensors[index] for index in operator.inputs[:3])
            weights, offsets = _constant(model, kernel), _constant(model, bias)
            known = ranges.get(given.name.decode())
            if weights is None or offsets is None or known is None:
                continue
            axis = -1 if _operator_name(model, operator) == "DEPTHWISE_CONV_2D" else 0
            channels = np.moveaxis(weights, axis, 0)
            rows = channels.reshape(len(channels), -1).copy()
            step = float(max(known["max"].item(), 0) - min(known["min"].item(), 0)) / 255
            least = np.abs(offsets) * (_KERNEL_STEPS / 2**28 / step)
            short = np.abs(rows).max(axis=1) < least
            if not short.any():
                continue
            changed = True
            rows[short, 0] = least[short]
            buffer = np.ascontiguousarray(np.moveaxis(rows.reshape(channels.shape), 0, axis))
            model.buffers[kernel.buffer].data = buffer.view(np.uint8).ravel()
    return pack(model) if changed else content


def _logits(model: Any, graph: Any) -> dict[int, Probabilities]:
    """Returns the tensors that nothing but a softmax takes, or nothing but a sigmoid."""
    taken: dict[int, set[str]] = {index: {"OUTPUT"} for index in graph.outputs}
    for operator in graph.operators:
        for index in operator.inputs:
            taken.setdefault(index, set()).add(_operator_name(model, operator))
    only = {index: names.pop() for index, names in taken.items() if len(names) == 1}
    return {index: _PROBABILITIES[name] for index, name in only.items() if name in _PROBABILITIES}


def _with_steps_of_sums(
    model: Any, graph: Any, ranges: Mapping[int, tuple[float, float]]
) -> dict[int, tuple[float, float]]:
    """Widens ranges whose steps are far finer than the sums that they are computed from.

    A sum is a whole number of steps of the input times steps of the kernel. XNNPACK refuses the
    whole model if a step of the output is below 1/256 of that, as it is for a latent that hardly
    varies.
    """
    import numpy as np

    widened = dict(ranges)
    for operator in graph.operators:
        given, result = operator.inputs[0], operator.outputs[0]
        if _operator_name(model, operator) not in _SUMMING or not {given, result} <= set(widened):
            continue
        weights = _constant(model, graph.tensors[operator.inputs[1]])
        if weights is None:
            continue
        kernel = float(np.abs(weights).max(initial=0))
        low, high = (f(0.0, end) for f, end in zip((min, max), widened[given], strict=True))
        least = (high - low) * kernel / _KERNEL_STEPS / _FINER
        low, high = widened[result]
        if (missing := least - (high - low)) > 0 and high > low:
            widened[result] = low - missing / 2, high + missing / 2
    return widened


def _agree_on_outputs(model: Any, original: Any, io_type: str) -> None:
    """Has the graph and the signature give the same tensors as outputs, of the type asked for.

    Where an operator takes an output as well, or the output is an input, the quantizer changes the
    index in one of the two alone.
    """
    graph, before = model.subgraphs[0], original.subgraphs[0]
    entries = zip(model.signatureDefs[0].outputs, original.signatureDefs[0].outputs, strict=True)
    for entry, old in entries:
        dtype = type_name(before.tensors[old.tensorIndex])
        wanted = io_type if dtype == FLOAT32 else dtype
        places = [i for i, index in enumerate(before.outputs) if index == old.tensorIndex]
        found = (graph.outputs[places[0]], entry.tensorIndex)
        right = next((i for i in found if type_name(graph.tensors[i]) == wanted), found[0])
        entry.tensorIndex = right
        for place in places:
            graph.outputs[place] = right


def _refuse_float_kernels(model: Any, variant: str) -> None:
    for graph, operator in ((g, operator) for g in model.subgraphs for operator in g.operators):
        for tensor in (graph.tensors[index] for index in operator.inputs if index >= 0):
            data = model.buffers[tensor.buffer].data
            if (
                data is not None
                and type_name(tensor) == FLOAT32
                and len(tensor.shape) > 1
                and len(data) >= SMALL_KERNEL * _FLOAT32_BYTES
            ):
                raise ConversionError(
                    f"The flatbuffer has no {variant} variant: the quantizer does not know "
                    f"operator {_operator_name(model, operator)}, whose weights "
                    f"{tuple(tensor.shape)} would stay float32. Leave out the variant, or the "
                    "layer."
                )


def _take_integers(model: Any) -> None:
    """Has operators take integers that read a shape, or give integers, and drops idle conversions.

    Models of free batch read shapes; and of the operators that take an output of the model, the
    quantizer leaves all but one the float that it makes of the output.
    """
    for graph in model.subgraphs:
        sources = {
            operator.outputs[0]: operator.inputs[0]
            for operator in graph.operators
            if _operator_name(model, operator) == "DEQUANTIZE"
        }
        for operator in graph.operators:
            name = _operator_name(model, operator)
            gives = type_name(graph.tensors[operator.outputs[0]])
            if name == "SHAPE" or (gives in ("int8", "int16") and name != "QUANTIZE"):
                operator.inputs = [sources.get(index, index) for index in operator.inputs]
        used = {index for operator in graph.operators for index in operator.inputs}
        unused = sources.keys() - used - set(graph.outputs)
        graph.operators = [each for each in graph.operators if each.outputs[0] not in unused]


def _type_unused_parts(model: Any) -> None:
    """Gives parts that nothing takes the type of the others, for the quantizer leaves them out.

    XNNPACK does not split a tensor into parts of different types.
    """
    for graph in model.subgraphs:
        for operator in graph.operators:
            if _operator_name(model, operator) in {"SPLIT", "SPLIT_V", "UNPACK"}:
                parts = [graph.tensors[index] for index in operator.outputs]
                typed = next((part for part in parts if type_name(part) != FLOAT32), parts[0])
                for part in parts:
                    part.type, part.quantization = typed.type, typed.quantization


def _constant(model: Any, tensor: Any) -> "NDArray[np.float32] | None":
    """Returns the elements of a constant tensor in float32; None for any other tensor."""
    import numpy as np

    data = model.buffers[tensor.buffer].data
    if data is None or type_name(tensor) != FLOAT32:
        return None
    return np.frombuffer(data, np.float32).reshape(tensor.shape)


def _operator_name(model: Any, operator: Any) -> str:
    return operator_name(model.operatorCodes[operator.opcodeIndex])
