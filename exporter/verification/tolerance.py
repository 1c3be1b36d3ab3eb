"""Derives how much an artifact may differ from the Keras model.

Rounding lets two honest float32 runtimes differ by an amount that grows with the width and depth of
the model: any order of a K-long sum obeys ``|y' - y| <= gamma_K (|W| |x|)``, and with high
probability ``c sqrt(K) u (|W| |x|)`` with ``u = 2**-24`` (Higham and Mary, 2019). A constant such
as 1e-5 fails honest wide layers and hides faults in narrow ones. The tolerance is therefore a
multiple of TensorFlow's own float32 error, measured against a float64 copy on the same inputs.
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
from exporter.graph.network import Network
from exporter.graph.types import Layer, Tensor

View = Literal["value", "log_probability"]

UNIT_ROUNDOFF = 2.0**-24
ERROR_MULTIPLE = 10.0
"""The tolerance as a multiple of TensorFlow's own rounding error."""

FLOOR_ULPS = 16.0
"""The least tolerance, in units of ``UNIT_ROUNDOFF`` times the largest absolute prediction."""

_SMALLEST_PROBABILITY = 1e-30
"""Below this, float32 probabilities run into denormals and tell nothing of the logits."""


@dataclass(frozen=True)
class Tolerance:
    """What parity allows for one view of one output on one probe.

    A difference passes if ``|y - reference| <= atol + rtol * |reference|`` for every element.

    Attributes:
        derived: Whether it was derived from the rounding error of the model, not given.
        rounding_error: TensorFlow's largest float32 error on the probe; None if it was given.
    """

    atol: float
    rtol: float
    derived: bool
    rounding_error: float | None


Predictions = Mapping[str, Mapping[str, Array]]
"""Arrays by probe and output."""

Tolerances = Mapping[tuple[str, str, View], Tolerance]
"""Tolerances by probe, output and view."""


def float64_copy(network: Network) -> Network:
    """Rebuilds a network with every floating point dtype raised to float64, same weights.

    Raises:
        ModelError: If the model cannot be rebuilt from its configuration.
    """
    import keras

    try:
        copy = network.recast("float64")
    except ModelError as error:
        raise ModelError(
            f"{error} The tolerance is derived from a float64 copy. Give atol or rtol instead."
        ) from error
    for layer in copy.layers.values():
        if (
            type(layer) is keras.layers.Conv2D
            and 1 < layer.groups == layer.filters
            and layer.kernel.shape[2] == 1
            and layer.data_format == "channels_last"
        ):
            # Keras has grouped convolutions compiled by XLA: minutes for a sample in float64.
            object.__setattr__(layer, "convolution_op", partial(_convolve_depthwise, layer))
        if type(layer) is keras.layers.MaxPooling3D:
            # TensorFlow has no such kernel for float64; a maximum adds one rounding at the most.
            object.__setattr__(layer, "call", partial(_in_float32, layer.call))
    return copy


def _in_float32(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    import keras

    return keras.ops.cast(call(keras.ops.cast(inputs, "float32")), "float64")


def _convolve_depthwise(layer: Layer, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Computes a convolution of as many groups as channels, as in ConvNeXt, as a depthwise one."""
    import keras

    return keras.ops.depthwise_conv(
        inputs,
        keras.ops.transpose(kernel, (0, 1, 3, 2)),
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )


def given_tolerances(reference: Predictions, atol: float | None, rtol: float | None) -> Tolerances:
    """Applies the user's tolerance to the values of every output; the part not given is 0."""
    tolerance = Tolerance(atol or 0.0, rtol or 0.0, derived=False, rounding_error=None)
    return {(probe, name, "value"): tolerance for probe in reference for name in reference[probe]}


def derive_tolerances(reference: Predictions, exact: Predictions) -> Tolerances:
    """Derives a tolerance for each probe, output and view.

    The error of a probe is taken relative to its largest value, and the largest such ratio of all
    probes counts: a probe of three samples may round well by luck. The float64 copy may have
    predicted the first samples only.
    """
    errors: dict[tuple[str, str, View], tuple[float, float]] = {}
    ratios: dict[tuple[str, View], list[float]] = {}
    for probe, outputs in exact.items():
        for output, exact_values in outputs.items():
            computed = reference[probe][output]
            for view, transform in views(computed).items():
                wanted = transform(exact_values)
                error = _distance(transform(computed[: len(exact_values)]), wanted)
                errors[probe, output, view] = error, (largest := _largest(wanted))
                if largest > 0:
                    ratios.setdefault((output, view), []).append(error / largest)
    tolerances = {}
    for (probe, output, view), (error, largest) in errors.items():
        ratio = max(ratios.get((output, view), [0.0]))
        atol = ERROR_MULTIPLE * max(error, ratio * largest)
        if np.issubdtype(reference[probe][output].dtype, np.inexact):
            atol = max(atol, FLOOR_ULPS * UNIT_ROUNDOFF * largest)
        tolerances[probe, output, view] = Tolerance(
            atol if math.isfinite(atol) else 0.0, 0.0, derived=True, rounding_error=error
        )
    return tolerances


def views(reference: Array) -> dict[View, Callable[[Array], Array]]:
    """Returns the views in which an output is compared, as functions to float64.

    A softmax hides errors of its logits, so distributions are compared by their logarithms too,
    which are the logits up to a constant for each row. Elements whose reference is too small are
    left out.
    """
    ways: dict[View, Callable[[Array], Array]] = {"value": partial(np.asarray, dtype=np.float64)}
    if are_probabilities(reference):
        large_enough = reference >= _SMALLEST_PROBABILITY

        def log_probability(values: Array) -> Array:
            chosen = values[large_enough[: len(values)]].astype(np.float64)
            return np.log(np.maximum(chosen, np.finfo(np.float32).tiny))

        ways["log_probability"] = log_probability
    return ways


def _distance(values: Array, other: Array) -> float:
    """Returns the largest difference of elements that are finite in both."""
    both = np.isfinite(values) & np.isfinite(other)
    return _largest(values[both] - other[both])


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
