"""Mends what the quantizer leaves wrong in a flatbuffer, and refuses what it leaves in float32."""

from typing import Any

from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.packing import name_of, pack, type_name, unpack
from exporter.formats.variants import FLOAT32
from exporter.quantization.granularity import SMALL_KERNEL

_FLOAT32_BYTES = 4


def mend(quantized: bytes, original: bytes, options: ExportOptions) -> bytes:
    """Returns what the quantizer made of a float32 flatbuffer, mended.

    Raises:
        ConversionError: If a large kernel is still in float32.
    """
    model = unpack(quantized)
    _agree_on_outputs(model, unpack(original), options.io_type)
    _refuse_float_kernels(model, options.variant)
    _take_integers(model)
    _type_unused_parts(model)
    return pack(model)


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
                    f"operator {name_of(model, operator)}, whose weights "
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
            if name_of(model, operator) == "DEQUANTIZE"
        }
        for operator in graph.operators:
            name = name_of(model, operator)
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
            if name_of(model, operator) in {"SPLIT", "SPLIT_V", "UNPACK"}:
                parts = [graph.tensors[index] for index in operator.outputs]
                typed = next((part for part in parts if type_name(part) != FLOAT32), parts[0])
                for part in parts:
                    part.type, part.quantization = typed.type, typed.quantization
