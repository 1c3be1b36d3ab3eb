"""Chooses between one scale for each tensor and one for each channel, by bytes and error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WORTHWHILE_DB = 3.0
"""Decibels that one scale for each channel must gain, because it takes more bytes."""

Granularity = Literal["tensor", "channel"]

SMALL_KERNEL = 1024
"""Elements below which quantizers may leave a kernel in float32."""


@dataclass(frozen=True)
class Compensation:
    """What rounding with compensation has gained.

    Attributes:
        layers: Number of layers whose kernels are rounded so; 0 where nearest steps lose less.
        narrow: Names of the layers with fewer than 8 bits, where layers differ.
        snr_before: Signal to noise ratio of the model's outputs in simulated integers, with each
            weight at its nearest step, in decibels.
        snr_after: The ratio with compensation.
    """

    layers: int
    snr_before: float
    snr_after: float
    narrow: tuple[str, ...] = ()


@dataclass(frozen=True)
class GranularityTrial:
    """An artifact of one granularity.

    Attributes:
        granularity: The granularity of the scales of its weights.
        size: Bytes of the artifact.
        snr_db: Signal to noise ratio of the worst output on calibration data, in decibels; None
            without calibration data.
        compensation: How its weights were rounded; None at their nearest steps, as asked for or
            without calibration data.
    """

    granularity: Granularity
    size: int
    snr_db: float | None
    compensation: Compensation | None = None


def to_try(asked: str) -> tuple[Granularity, ...]:
    """Returns the granularities to try: the one asked for, or both for ``"auto"``."""
    both: tuple[Granularity, ...] = ("tensor", "channel")
    return tuple(each for each in both if asked in {each, "auto"})


def choose(trials: Sequence[GranularityTrial], limit: int | None = None) -> GranularityTrial:
    """Returns the smallest trial, unless another one is better by ``WORTHWHILE_DB``.

    Args:
        trials: At least one.
        limit: Most bytes. Bytes below a limit cost nothing: the best trial that fits is returned,
            or the smallest if none does.
    """
    fitting = [trial for trial in trials if limit is not None and trial.size <= limit]
    if fitting:
        return max(fitting, key=lambda trial: trial.snr_db or 0.0)
    smallest = min(trials, key=lambda trial: trial.size)
    if limit is not None:
        return smallest
    best = max(trials, key=lambda trial: trial.snr_db or 0.0)
    gain = (best.snr_db or 0.0) - (smallest.snr_db or 0.0)
    return best if gain >= WORTHWHILE_DB else smallest
