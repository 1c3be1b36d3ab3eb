"""Estimates the ranges of activations of a flatbuffer, and widens those that LiteRT cannot take."""

from collections.abc import Mapping
from typing import Any

from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions
from exporter.formats.batches import whole_batches
from exporter.formats.tflite.packing import SUMMING, constant, name_of, pack, type_name, unpack
from exporter.formats.tflite.runner import fixed_batch, observable
from exporter.formats.variants import FLOAT32
from exporter.graph.layers import Probabilities

Ranges = Mapping[str, dict[str, Any]]
"""Arrays ``min`` and ``max`` by the name of a tensor, as the quantizer takes them."""

_KERNEL_STEPS = 127
_PROBABILITIES: dict[str, Probabilities] = {"SOFTMAX": "categorical", "LOGISTIC": "bernoulli"}
_FINER = 128
"""Most steps of an output within one of the sums it is computed from; XNNPACK takes up to 256."""


def observed_ranges(content: bytes, options: ExportOptions, bits: int) -> Ranges:
    """Estimates the ranges of activations on the calibration data, by the names of tensors."""
    import numpy as np

    # It imports NumPy.
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


def with_room_for_biases(content: bytes, ranges: Ranges) -> bytes:
    """Widens ranges of kernels, and of their channels, in whose steps a bias overflows 32 bits.

    A bias has the steps of the input times those of the kernel, which are next to nothing where all
    weights are, as for dead units. One weight is moved, by less than a thousandth of the bias at
    the largest input.
    """
    import numpy as np

    model, changed = unpack(content), False
    for graph in model.subgraphs:
        for operator in graph.operators:
            if name_of(model, operator) not in SUMMING or len(operator.inputs) < 3:
                continue
            given, kernel, bias = (graph.tensors[index] for index in operator.inputs[:3])
            weights, offsets = constant(model, kernel), constant(model, bias)
            known = ranges.get(given.name.decode())
            if weights is None or offsets is None or known is None:
                continue
            axis = -1 if name_of(model, operator) == "DEPTHWISE_CONV_2D" else 0
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
            taken.setdefault(index, set()).add(name_of(model, operator))
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
        if name_of(model, operator) not in SUMMING or not {given, result} <= set(widened):
            continue
        weights = constant(model, graph.tensors[operator.inputs[1]])
        if weights is None:
            continue
        kernel = float(np.abs(weights).max(initial=0))
        low, high = (f(0.0, end) for f, end in zip((min, max), widened[given], strict=True))
        least = (high - low) * kernel / _KERNEL_STEPS / _FINER
        low, high = widened[result]
        if (missing := least - (high - low)) > 0 and high > low:
            widened[result] = low - missing / 2, high + missing / 2
    return widened
