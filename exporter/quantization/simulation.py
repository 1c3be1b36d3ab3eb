"""Simulates what LiteRT computes in 8-bit integers, in float: each number at its nearest step.

LiteRT knows two schemes. ``"dynamic"``: the kernels of linear layers are integers in the file, and
their inputs become integers when they are called, with a range of their own in every row (for
convolutions: in every sample). ``"static"``: every activation has one range, which calibration data
showed. Kernels are symmetric, from -127 to 127; activations are not. Biases stay as they are: they
take 32 bits.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporter.data.metrics import decibels
from exporter.graph.layers import activation_of, kind_of
from exporter.graph.outputs import as_logits, output_families
from exporter.graph.rewrite import rewrite
from exporter.graph.runner import tensors_of
from exporter.graph.signature import Signature
from exporter.graph.taps import replaced
from exporter.graph.walk import walk
from exporter.lowrank.calibration import Calibration
from exporter.quantization.granularity import SMALL_KERNEL, Granularity

Scheme = Literal["dynamic", "static"]

WEIGHT_STEPS = 127
ACTIVATION_STEPS = 255


def linear_layers(model: Any) -> Iterator[Any]:
    """Yields the layers of a model, and those within them, that multiply by a kernel at once."""
    for _, layer in walk(model):
        for part in layer._flatten_layers():
            if kind_of(part).output_axes:
                yield part


def round_weights(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    """Rounds a kernel to symmetric 8-bit integers times a scale.

    Args:
        array: The kernel.
        axes: Along which each index has a scale of its own; None is one scale for all.
    """
    others = None if axes is None else tuple({*range(array.ndim)} - {a % array.ndim for a in axes})
    largest = np.abs(array).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0) / WEIGHT_STEPS
    rounded: NDArray[Any] = np.rint(array / scale) * scale
    return rounded


def round_activations(values: Any, low: Any, high: Any) -> Any:
    """Rounds a TensorFlow tensor to 256 steps between two ends, of which zero is one."""
    import tensorflow as tf

    # In half precision the steps themselves would be rounded.
    wide, low, high = (tf.cast(each, tf.float32) for each in (values, low, high))
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    scale = tf.maximum((high - low) / ACTIVATION_STEPS, np.finfo(np.float32).tiny)
    zero = tf.round(-low / scale)
    steps = tf.clip_by_value(tf.round(wide / scale) + zero, 0, ACTIVATION_STEPS)
    return tf.cast((steps - zero) * scale, values.dtype)


def round_inputs(layer: Any, values: Any, scheme: Scheme) -> Any:
    """Rounds what goes into a linear layer, in the ranges that the values themselves have.

    Where the kernel stays as it is, so do they.

    Args:
        layer: The layer.
        values: A tensor of its inputs.
        scheme: In the dynamic one, convolutions take their range from the whole sample, other
            layers from each row.
    """
    import tensorflow as tf

    if not _is_rounded(layer, scheme):
        return values
    axes = None
    if scheme == "dynamic":
        whole = hasattr(layer, "kernel_size")
        axes = tuple(range(1, len(values.shape))) if whole else (-1,)
    low = tf.reduce_min(values, axis=axes, keepdims=True)
    high = tf.reduce_max(values, axis=axes, keepdims=True)
    return round_activations(values, low, high)


def _is_rounded(layer: Any, scheme: Scheme) -> bool:
    """Tells whether the kernel of a linear layer becomes integers."""
    largest = max(int(np.prod(variable.shape)) for variable in layer.weights)
    return scheme == "static" or largest >= SMALL_KERNEL


def kernel_granularity(layer: Any, scheme: Scheme, granularity: Granularity) -> Granularity:
    """Returns what of a kernel has a scale: the dynamic scheme has no convolutions of one scale."""
    return "channel" if scheme == "dynamic" and hasattr(layer, "kernel_size") else granularity


def round_kernels(layer: Any, scheme: Scheme, granularity: Granularity) -> None:
    """Rounds the kernels of a linear layer in place, if they become integers."""
    if not _is_rounded(layer, scheme):
        return
    by_channel = kernel_granularity(layer, scheme, granularity) == "channel"
    axes = kind_of(layer).output_axes if by_channel else None
    *others, last = [variable for variable in layer.weights if variable.name != "bias"]
    for variable in others:
        variable.assign(round_weights(variable.numpy(), None))
    last.assign(round_weights(last.numpy(), axes))


class Simulation:
    """Judges models by their outputs in simulated integers, against one of them in float."""

    def __init__(
        self,
        reference: Any,
        calibration: Calibration,
        scheme: Scheme,
        granularity: Granularity,
    ) -> None:
        """Predicts with the reference.

        Args:
            reference: The model, in float.
            calibration: Is what ranges are taken from, and what models are judged on.
            scheme: Which numbers are rounded.
            granularity: Whether kernels have one scale, or one an output channel.
        """
        self._calibration, self._scheme, self._granularity = calibration, scheme, granularity
        self._families = output_families(reference, calibration.logits)
        self._expected = self._outputs(reference)

    def snr(self, model: Any) -> float:
        """Returns the signal to noise ratio of a model's outputs, in decibels.

        Those of a classifier are judged as logits, up to a constant. Of several outputs, the noise
        counts in parts of each one's signal.
        """
        outputs = self._rounded_outputs(model)
        noise = [
            float(np.sum((outputs[name] - expected) ** 2) / max(np.sum(expected**2), 1e-30))
            for name, expected in self._expected.items()
        ]
        return -decibels(sum(noise) / len(noise))

    def _rounded_outputs(self, model: Any) -> dict[str, NDArray[np.float64]]:
        copy = rewrite(model, {})
        for layer in linear_layers(copy):
            round_kernels(layer, self._scheme, self._granularity)
        if self._scheme == "dynamic":
            patches = [(layer, "call", _rounding_rows(layer)) for layer in linear_layers(copy)]
            with replaced(patches):
                return self._outputs(copy)
        ranges = _Ranges()
        with replaced(_sites(copy, ranges.observe)):
            self._outputs(copy, ranges.observe)
        with replaced(_sites(copy, ranges.rounded)):
            return self._outputs(copy, ranges.rounded)

    def _outputs(self, model: Any, visit: "_Visit | None" = None) -> dict[str, NDArray[np.float64]]:
        """Predicts all batches; classifiers give logits whose mean is zero."""
        import tensorflow as tf

        signature = Signature(model)
        parts: dict[str, list[Any]] = {name: [] for name in self._families}
        for batch in self._calibration.batches():
            inputs = tensors_of(signature, batch)
            if visit is not None:
                inputs = {name: visit(name, tensor) for name, tensor in inputs.items()}
            for name, outputs in signature(**inputs).items():
                family = self._families[name]
                judged = outputs if family == "gaussian" else as_logits(outputs, family)
                if family in {"categorical", "categorical_logits"}:
                    judged -= tf.reduce_mean(judged, axis=-1, keepdims=True)
                parts[name].append(judged.numpy().astype(np.float64))
        return {name: np.concatenate(values) for name, values in parts.items()}


_Visit = Callable[[Any, Any], Any]
"""Is given where a tensor was met, and the tensor, and returns what goes on from there."""


class _Ranges:
    """The smallest and the largest value that each tensor had."""

    def __init__(self) -> None:
        self._ends: dict[Any, tuple[Any, Any]] = {}

    def observe(self, site: Any, values: Any) -> Any:
        import tensorflow as tf

        if values.dtype.is_floating:
            low, high = self._ends.get(site, (0.0, 0.0))
            self._ends[site] = (
                tf.minimum(tf.reduce_min(values), low),
                tf.maximum(tf.reduce_max(values), high),
            )
        return values

    def rounded(self, site: Any, values: Any) -> Any:
        ends = self._ends.get(site)
        return values if ends is None else round_activations(values, *ends)


def _sites(model: Any, visit: _Visit) -> list[tuple[Any, str, Any]]:
    """Returns what has each layer's result, and what goes into its activation, visited."""
    import keras

    patches: list[tuple[Any, str, Any]] = []
    for path, layer in walk(model):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        # Recurrent layers pass on that of their cell, which is not theirs to set.
        function, kind = vars(layer).get("activation"), activation_of(layer)
        if function is not None and not kind.fused:
            patches.append((layer, "activation", _before(function, (path, "activation"), visit)))
        if kind.probabilities is None:  # Else the logits behind them are judged.
            patches.append((layer, "call", _after(layer.call, (path, "call"), visit)))
    return patches


def _before(function: Callable[[Any], Any], site: Any, visit: _Visit) -> Callable[[Any], Any]:
    return lambda values: function(visit(site, values))


def _after(function: Callable[..., Any], site: Any, visit: _Visit) -> Callable[..., Any]:
    import keras

    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return keras.tree.map_structure(lambda values: visit(site, values), result)

    return call


def _rounding_rows(layer: Any) -> Callable[..., Any]:
    """Returns the call of a linear layer whose inputs are rounded in ranges of their own."""
    call = layer.call

    def rounding(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return call(round_inputs(layer, inputs, "dynamic"), *args, **kwargs)

    return rounding
