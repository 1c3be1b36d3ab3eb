"""Makes the numeric variants of a float32 flatbuffer with LiteRT Quantizer.

The quantizer is given the ranges of activations, which are estimated as for every other format. It
leaves operators that it does not know in float32; that is an error only if their weights are large.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

from exporter.errors import ConversionError, DataError, brief
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.mending import mend
from exporter.formats.tflite.packing import constant, name_of, unpack
from exporter.formats.tflite.ranges import Ranges, observed_ranges, with_room_for_biases
from exporter.formats.tflite.unquantized import spoiled_by_integers
from exporter.formats.variants import DYNAMIC, FLOAT16, FLOAT32, INT4, INT8, INT16X8, MIXED, Variant
from exporter.formats.variants import QualityRule as Rule
from exporter.quantization.granularity import SMALL_KERNEL
from exporter.quantization.scheme import IntegerScheme, KernelFormat, levels

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

_ON_STEP = 1e-3
"""Part of a step by which float32 may miss it."""


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
    return mend(quantized, content, options)


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
            name = name_of(model, operator)
            if name not in ("CONV_2D", "FULLY_CONNECTED"):
                continue
            kernel = constant(model, graph.tensors[operator.inputs[1]])
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

    ranges = observed_ranges(content, options, scheme.activation_bits)
    if scheme.activation_bits == 8:
        content = with_room_for_biases(content, ranges)
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
        for operator in spoiled_by_integers(model, graph, bits):
            name = name_of(model, operator)
            if name in TFLOperationName.__members__:
                result = graph.tensors[operator.outputs[0]].name.decode()
                quantizer.update_quantization_recipe(
                    f"^{re.escape(result)};",
                    TFLOperationName[name],
                    algorithm_key=AlgorithmName.NO_QUANTIZE,
                )


def _with_integer_tables(quantizer: Any, content: bytes) -> Ranges:
    """Configures tables of constants, as of embeddings, for 8 bits, and returns their ranges.

    Otherwise they would get the bits of an activation: the quantizer does not know that they are
    weights.
    """
    from litert_quantizer.qtyping import TFLOperationName

    ranges, model = {}, unpack(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if name_of(model, operator) != "GATHER":
                continue
            table = graph.tensors[operator.inputs[0]]
            values = constant(model, table)
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


def _result(quantizer: Any, ranges: Ranges) -> bytes:
    # It opens an interpreter that warns of its own options, and draws progress bars.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        result = quantizer.quantize(
            ranges or None, enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)
