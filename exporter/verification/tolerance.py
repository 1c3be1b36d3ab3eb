"""How much an artifact may differ from the Keras model: derived, not guessed.

Rounding lets two honest float32 runtimes differ by an amount that grows with the width and depth of
the model: any order of a K-long sum obeys ``|y' - y| <= gamma_K (|W| |x|)``, and with high
probability ``c sqrt(K) u (|W| |x|)`` with ``u = 2**-24`` (Higham and Mary, 2019). A constant such
as 1e-5 fails honest wide layers and hides faults in narrow ones. So TensorFlow's own float32 error
is measured against a float64 copy of the model on the same inputs, and the tolerance is a multiple
of that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from exporter.data import Array
from exporter.data.metrics import are_probabilities
from exporter.errors import ModelError
from exporter.formats.variants import ToleranceRule
from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor

View = Literal["value", "log_probability"]

UNIT_ROUNDOFF = 2.0**-24
_SMALLEST_PROBABILITY = 1e-30
"""Below this, float32 probabilities run into denormals and tell nothing of the logits."""


@dataclass(frozen=True)
class Tolerance:
    """What parity allows for one view of one output on one probe.

    A difference passes if ``|y - reference| <= atol + rtol * |reference|`` for every element.

    Attributes:
        atol: Absolute part.
        rtol: Relative part.
        derived: Whether it comes from the rounding error of the model, or was given.
        rounding_error: TensorFlow's largest float32 error on the probe; None if it was not needed.
    """

    atol: float
    rtol: float
    derived: bool
    rounding_error: float | None


Predictions = Mapping[str, Mapping[str, Array]]
"""Arrays by probe and output."""

Tolerances = Mapping[tuple[str, str, View], Tolerance]
"""By probe, output and view."""


def float64_copy(network: Network) -> Network:
    """Rebuilds a network with every floating point dtype raised to float64, same weights.

    Raises:
        ModelError: If the model cannot be rebuilt from its configuration.
    """
    try:
        copy = network.recast("float64")
    except ModelError as error:
        raise ModelError(
            f"{error} The tolerance is derived from a float64 copy. Give atol or rtol instead."
        ) from error
    for layer in copy.layers.values():
        if _is_depthwise(layer):
            object.__setattr__(layer, "call", partial(_convolve_depthwise, layer))
    return copy


def _is_depthwise(layer: Layer) -> bool:
    """Tells whether a grouped convolution takes each channel on its own, as in ConvNeXt."""
    import keras

    return (
        type(layer) is keras.layers.Conv2D
        and 1 < layer.groups == layer.filters
        and layer.kernel.shape[2] == 1
        and layer.data_format == "channels_last"
    )


def _convolve_depthwise(layer: Layer, inputs: Tensor) -> Tensor:
    """Computes the layer as a depthwise convolution.

    Keras has grouped ones compiled by XLA, which takes minutes for a sample in float64.
    """
    import keras

    outputs = keras.ops.depthwise_conv(
        inputs,
        keras.ops.transpose(layer.kernel, (0, 1, 3, 2)),
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )
    if layer.use_bias:
        outputs += layer.bias
    return outputs if layer.activation is None else layer.activation(outputs)


def given_tolerances(
    reference: Predictions, atol: float | None, rtol: float | None
) -> dict[tuple[str, str, View], Tolerance]:
    """Applies the user's tolerance to every output as it is; the part not given is 0."""
    tolerance = Tolerance(atol or 0.0, rtol or 0.0, derived=False, rounding_error=None)
    return {
        (probe, output, "value"): tolerance
        for probe, outputs in reference.items()
        for output in outputs
    }


def derive_tolerances(
    reference: Predictions, exact: Predictions, rule: ToleranceRule
) -> dict[tuple[str, str, View], Tolerance]:
    """Derives a tolerance for each probe, output and view.

    The error of a probe is taken relative to its largest value, and the largest such ratio of all
    probes counts: a probe of three samples may round well by luck.

    Args:
        reference: TensorFlow's predictions in the precision of the model.
        exact: Predictions of the float64 copy, for as many of the first samples as are there.
        rule: The multiple and the floor.
    """
    errors: dict[tuple[str, str, View], tuple[float, float]] = {}
    for probe, outputs in exact.items():
        for output, exact_values in outputs.items():
            computed = reference[probe][output][: len(exact_values)]
            for view, transform in views(reference[probe][output]).items():
                difference = _largest(transform(computed) - transform(exact_values))
                errors[probe, output, view] = (difference, _largest(transform(exact_values)))
    tolerances = {}
    for (probe, output, view), (error, largest) in errors.items():
        ratio = (
            max(
                other / size
                for (_, name, kind), (other, size) in errors.items()
                if (name, kind) == (output, view) and size > 0
            )
            if largest > 0
            else 0.0
        )
        floor = rule.floor_ulps * UNIT_ROUNDOFF * largest
        if not np.issubdtype(reference[probe][output].dtype, np.inexact):
            floor = 0.0
        atol = max(rule.multiple * max(error, ratio * largest), floor)
        tolerances[probe, output, view] = Tolerance(
            atol if math.isfinite(atol) else 0.0, 0.0, derived=True, rounding_error=error
        )
    return tolerances


def views(reference: Array) -> dict[View, Callable[[Array], Array]]:
    """Returns the ways in which an output is compared.

    A softmax hides errors of its logits, so distributions are compared by their logarithms too:
    these are the logits up to a constant a row. Elements whose reference is too small are left out.
    """
    ways: dict[View, Callable[[Array], Array]] = {"value": _as_float64}
    if are_probabilities(reference):
        large_enough = reference >= _SMALLEST_PROBABILITY

        def log_probability(values: Array) -> Array:
            chosen = _as_float64(values)[large_enough[: len(values)]]
            return np.log(np.maximum(chosen, np.finfo(np.float32).tiny))

        ways["log_probability"] = log_probability
    return ways


def _as_float64(values: Array) -> Array:
    return values.astype(np.float64)


def _largest(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0
