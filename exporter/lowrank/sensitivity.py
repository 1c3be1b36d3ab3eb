"""Measures how much the truncation of each kernel changes the outputs of the model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.data.metrics import are_probabilities
from exporter.graph.hooks import replaced
from exporter.graph.network import Network
from exporter.graph.runner import predict_in_batches
from exporter.lowrank.calibration import Calibration
from exporter.lowrank.candidates import Candidate
from exporter.lowrank.engine import Engine, build_replacements
from exporter.lowrank.ranks.budgeted import Sensitivity
from exporter.progress import Logged, Progress

MAX_MACS = 10**12
"""Multiply-accumulates that all measurements together may take."""

MAX_SAMPLES = 512

PROBE_PARTS = (0.1, 0.4)
"""Ranks at which the effect is measured, as parts of the break-even rank."""

EXPONENTS = (0.5, 2.0)
"""Bounds for the exponent, because two probes do not average out noise."""

LEAST_EFFECT = 1e-6
"""Part of the largest effect that a kernel without any counts with: it keeps its energy where that
costs the others next to nothing, so that a budget is used."""

Outputs = Mapping[str, NDArray[Any]]


def measure_sensitivities(
    engine: Engine, progress: Progress | None = None
) -> dict[str, Sensitivity]:
    """Measures the effect of truncating each kernel alone on the outputs.

    The ``divergence`` at two ranks is fitted by ``scale * (curve[r] / curve[0]) ** exponent``. The
    result has a candidate name for each kernel that some rank makes smaller, and none without
    calibration data.
    """
    if engine.calibration is None:
        return {}
    chosen = [c for c in engine.candidates if c.kernel is not None and c.kernel.break_even_rank > 1]
    cost = engine.network.macs * (1 + len(PROBE_PARTS) * len(chosen))
    samples = max(1, min(MAX_SAMPLES, MAX_MACS // max(1, cost)))
    calibration = engine.calibration.head(samples)
    reference = _predict(engine.network, calibration)
    sensitivities = {}
    with (progress or Logged()).track("Measuring sensitivities", len(chosen)) as advance:
        for number, candidate in enumerate(chosen):
            sensitivities[candidate.name] = _measure(engine, candidate, calibration, reference)
            advance(number + 1, candidate.name)
    most = max((each.scale for each in sensitivities.values()), default=0.0) or 1.0
    least = Sensitivity(LEAST_EFFECT * most)
    return {n: each if each.scale else least for n, each in sensitivities.items()}


def divergence(reference: Outputs, outputs: Outputs, logits: frozenset[str]) -> float:
    """Returns the distance of outputs from their reference, summed over the outputs of a model.

    For distributions it is the mean Kullback-Leibler divergence in nats; for other outputs, half of
    the squared error over the variance. The outputs among ``logits`` are log-probabilities up to a
    constant, unless they are distributions.
    """
    total = 0.0
    for name, expected in reference.items():
        y, z = expected.astype(np.float64), outputs[name].astype(np.float64)
        if are_probabilities(expected):
            total += _kl(np.log(np.maximum(y, 1e-12)), np.log(np.maximum(z, 1e-12)))
        elif name in logits and y.shape[-1] > 1:
            total += _kl(_log_softmax(y), _log_softmax(z))
        else:
            variance = float(np.var(y)) or 1.0
            total += 0.5 * float(np.mean((y - z) ** 2)) / variance
    return total


def _kl(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> float:
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _measure(
    engine: Engine, candidate: Candidate, calibration: Calibration, reference: Outputs
) -> Sensitivity:
    kernel, curve = candidate.kernel, engine.curves[candidate.name]
    if kernel is None or not curve[0]:
        return Sensitivity()
    points = []
    for rank in sorted({max(1, int(part * kernel.break_even_rank)) for part in PROBE_PARTS}):
        truncation = kernel.truncate(rank, engine.moments.get(candidate.name))
        (replacement,) = build_replacements([candidate], {candidate.name: truncation}).values()
        with replaced([(candidate.layer, "call", replacement)]):
            outputs = _predict(engine.network, calibration)
        effect = divergence(reference, outputs, calibration.logits)
        if effect > 0 and math.isfinite(effect) and curve[rank] > 0:
            points.append((math.log(curve[rank] / curve[0]), math.log(effect)))
    return _fit(points)


def _fit(points: list[tuple[float, float]]) -> Sensitivity:
    """Fits a power law to the logarithms of error and effect; through one point, a linear one."""
    if not points:
        return Sensitivity(0.0)  # Nothing that the outputs would show.
    (x, y), (last_x, last_y) = points[0], points[-1]
    exponent = (y - last_y) / (x - last_x) if x != last_x else 1.0
    exponent = float(np.clip(exponent, *EXPONENTS))
    middle = np.mean([value - exponent * error for error, value in points])
    return Sensitivity(math.exp(float(middle)), exponent)


def _predict(network: Network, calibration: Calibration) -> dict[str, NDArray[Any]]:
    # Eagerly: each substitution would have to be traced anew.
    runner = network.runner(eager=True)
    return predict_in_batches(runner, calibration.inputs, calibration.batch_size, len(calibration))
