"""Simulates integer runtimes in float: each number is rounded to its nearest step.

``IntegerScheme`` tells which numbers are rounded. Biases are not: they have 32 bits. The symmetry
of LiteRT's 16-bit activations, which costs one bit at most, is not simulated.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.data.metrics import decibels
from exporter.graph.hooks import replaced
from exporter.graph.layers import Probabilities, activation_of, kind_of, with_parts
from exporter.graph.network import Network
from exporter.graph.outputs import as_logits, output_layers
from exporter.graph.types import Layer, Tensor, Variable
from exporter.lowrank.calibration import Calibration
from exporter.quantization.grid import Grid
from exporter.quantization.ranges import relevant
from exporter.quantization.scheme import IntegerScheme, KernelFormat, levels


def linear_layers(network: Network) -> Iterator[Layer]:
    """Yields the layers of a network, and the layers within them, that multiply by a kernel."""
    found = {id(part): part for layer in network.layers.values() for part in with_parts(layer)}
    yield from (part for part in found.values() if kind_of(part).output_axes)


def round_weights(array: NDArray[Any], axes: tuple[int, ...], kernel: KernelFormat) -> NDArray[Any]:
    """Rounds a kernel, whose channels lie along some axes, to integers times a scale."""
    others = None
    if kernel.granularity == "channel":
        others = tuple({*range(array.ndim)} - {axis % array.ndim for axis in axes})
    low, high = (end(array, axis=others, keepdims=True) for end in (np.min, np.max))
    return Grid.between(low, high, kernel).rounded(array)


def round_activations(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Rounds a tensor to the steps of some bits between two ends; zero is one of the steps."""
    import tensorflow as tf

    # Half precision would round the steps themselves.
    wide, low, high = (tf.cast(each, tf.float32) for each in (values, low, high))
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    if not low.shape.rank:  # One pass over the values.
        rounded = tf.quantization.fake_quant_with_min_max_vars(wide, low, high, num_bits=bits)
        return tf.cast(rounded, values.dtype)
    scale = tf.maximum((high - low) / levels(bits), np.finfo(np.float32).tiny)
    zero = tf.round(-low / scale)
    steps = tf.clip_by_value(tf.round(wide / scale) + zero, 0, levels(bits))
    return tf.cast((steps - zero) * scale, values.dtype)


def round_inputs(layer: Layer, values: Tensor, scheme: IntegerScheme) -> Tensor:
    """Rounds the inputs of a linear layer by their own range, if its kernel becomes integers."""
    import tensorflow as tf

    if not is_rounded(layer, scheme):
        return values
    axes = range_axes(layer, values, scheme)
    low, high = (
        end(values, axes, keepdims=axes is not None) for end in (tf.reduce_min, tf.reduce_max)
    )
    return round_activations(values, low, high, scheme.activation_bits)


def range_axes(layer: Layer, values: Tensor, scheme: IntegerScheme) -> tuple[int, ...] | None:
    """Returns the axes that one range is taken over; None for all of them.

    Where rows have ranges, a convolution takes the range of the whole sample.
    """
    if scheme.activations == "static" or scheme.dynamic_range == "batch":
        return None
    return tuple(range(1, len(values.shape))) if hasattr(layer, "kernel_size") else (-1,)


def is_rounded(layer: Layer, scheme: IntegerScheme) -> bool:
    """Tells whether the kernel of a linear layer becomes integers."""
    largest = max(math.prod(variable.shape) for variable in layer.weights)
    return bool(largest >= scheme.smallest_kernel)


def kernel_format(layer: Layer, scheme: IntegerScheme) -> KernelFormat:
    """Returns the integers of a layer's last kernel, if it becomes integers."""
    narrow = kind_of(layer).in_four_bits and layer.name not in scheme.wide
    bits = scheme.weight_bits if narrow else 8
    if scheme.convolutions is not None and hasattr(layer, "kernel_size"):
        return replace(scheme.convolutions, bits=bits)
    symmetric = scheme.granularity in scheme.symmetric
    return KernelFormat(scheme.granularity, bits, symmetric, scheme.signed)


def round_kernels(layer: Layer, scheme: IntegerScheme) -> None:
    """Rounds the kernels of a linear layer in place, if they become integers."""
    if not is_rounded(layer, scheme):
        return
    *others, last = [variable for variable in layer.weights if variable.name != "bias"]
    for variable in others:
        kernel = KernelFormat("tensor", symmetric="tensor" in scheme.symmetric)
        variable.assign(round_weights(variable.numpy(), (), kernel))
    axes, kernel = kind_of(layer).output_axes, kernel_format(layer, scheme)
    last.assign(round_weights(last.numpy(), axes, kernel))


@contextmanager
def restored(variables: Iterable[Variable]) -> Iterator[None]:
    """Sets weights back to their values at the end of the block."""
    values = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in values:
            variable.assign(value)


class Simulation:
    """Compares the outputs of models in simulated integers with those of a reference in float."""

    def __init__(self, reference: Network, calibration: Calibration) -> None:
        """Predicts calibration data with the reference; they give the ranges, too."""
        self._calibration = calibration
        self._families = reference.families(calibration.tasks)
        self._expected = self._outputs(reference)

    def snr(self, network: Network, scheme: IntegerScheme) -> float:
        """Returns the signal to noise ratio of a network's outputs in integers, in decibels.

        Outputs of a classifier are compared as logits, up to a constant. With several outputs, the
        ratios of noise to signal are averaged. Kernels are rounded in place, and restored.
        """
        outputs = self._rounded_outputs(network, scheme)
        noise = [
            float(np.sum((outputs[name] - expected) ** 2) / max(np.sum(expected**2), 1e-30))
            for name, expected in self._expected.items()
        ]
        return -decibels(sum(noise) / len(noise))

    def _rounded_outputs(
        self, network: Network, scheme: IntegerScheme
    ) -> dict[str, NDArray[np.float64]]:
        layers = list(linear_layers(network))
        with restored(weight for layer in layers for weight in layer.weights):
            for layer in layers:
                round_kernels(layer, scheme)
            if scheme.activations == "dynamic":
                patches = []
                for layer in layers:
                    rounding = partial(round_inputs, layer, scheme=scheme)
                    patches.append((layer, "call", _before(layer.call, rounding)))
                with replaced(patches):
                    return self._outputs(network)
            ranges = _Ranges(scheme.activation_bits)
            with replaced(_sites(network, ranges.observe, scheme)):
                self._outputs(network, ranges.observe)
            with replaced(_sites(network, ranges.rounded, scheme)):
                return self._outputs(network, ranges.rounded)

    def _outputs(
        self, network: Network, visit: "_Visit | None" = None
    ) -> dict[str, NDArray[np.float64]]:
        """Predicts all batches; for classifiers returns logits with zero mean, where they count."""
        signature = network.signature
        parts: dict[str, list[Any]] = {name: [] for name in self._families}
        for batch in self._calibration.batches():
            inputs = signature.tensors(batch)
            if visit is not None:
                inputs = {
                    name: visit(_Site(name, "input"), tensor) for name, tensor in inputs.items()
                }
            for name, outputs in signature(**inputs).items():
                family = self._families[name]
                judged = outputs if family == "gaussian" else as_logits(outputs, family)
                array = judged.numpy().astype(np.float64)
                if family in ("categorical", "bernoulli"):
                    array = relevant(array, family)
                if family.startswith("categorical"):
                    array -= array.mean(axis=-1, keepdims=True)
                parts[name].append(array)
        return {name: np.concatenate(values) for name, values in parts.items()}


class _Site(NamedTuple):
    """A tensor: an input, what an activation takes, or the result of a layer."""

    name: str
    place: Literal["input", "activation", "result"]
    probabilities: Probabilities | None = None


_Visit = Callable[[_Site, Tensor], Tensor]
"""Takes the place and the value of a tensor, and returns the value to continue with."""


class _Ranges:
    """The smallest and the largest value of each tensor."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._ends: dict[_Site, tuple[Any, Any]] = {}

    def observe(self, site: _Site, values: Tensor) -> Tensor:
        import tensorflow as tf

        if values.dtype.is_floating:
            low, high = self._ends.get(site, (0.0, 0.0))
            kind = site.probabilities
            kept = values if kind is None else relevant(values.numpy(), kind, self._bits)
            self._ends[site] = (
                tf.minimum(tf.reduce_min(kept), low),
                tf.maximum(tf.reduce_max(kept), high),
            )
        return values

    def rounded(self, site: _Site, values: Tensor) -> Tensor:
        ends = self._ends.get(site)
        return values if ends is None else round_activations(values, *ends, self._bits)


def _sites(network: Network, visit: _Visit, scheme: IntegerScheme) -> list[tuple[Layer, str, Any]]:
    """Returns patches that visit the result of each layer and the input of its activation."""
    import keras

    outputs = set(map(id, output_layers(network.model)))
    patches: list[tuple[Layer, str, Any]] = []
    for path, layer in network.layers.items():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        # Recurrent layers have the activation of their cell as a property.
        function, kind = vars(layer).get("activation"), activation_of(layer)
        dense = kind_of(layer).output_axes and not hasattr(layer, "kernel_size")
        in_float = scheme.float_sums and dense
        if function is not None and not kind.fused and not in_float:
            patches.append(
                (
                    layer,
                    "activation",
                    _before(
                        function, partial(visit, _Site(path, "activation", kind.probabilities))
                    ),
                )
            )
        # Probabilities are compared by their logits.
        if kind.probabilities is None and not (in_float and id(layer) in outputs):
            patches.append(
                (layer, "call", _after(layer.call, partial(visit, _Site(path, "result"))))
            )
    return patches


def _before(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda inputs, *args, **kwargs: function(change(inputs), *args, **kwargs)


def _after(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    import keras

    return lambda *args, **kwargs: keras.tree.map_structure(change, function(*args, **kwargs))
