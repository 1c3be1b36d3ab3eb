"""Numeric variants of formats, and the limits that verification applies to each."""

from dataclasses import dataclass

from exporter.options.groups import FLOAT32
from exporter.quantization.scheme import IntegerScheme

__all__ = ["FLOAT32"]

FLOAT16 = "float16"
DYNAMIC = "dynamic"
INT8 = "int8"
INT16X8 = "int16x8"
INT4 = "int4"
MIXED = "mixed"


@dataclass(frozen=True)
class QualityRule:
    """The limits for a quantized artifact against the float model on the first probe.

    Attributes:
        snr_db: Least signal to noise ratio in decibels.
        agreement: Least part of the samples with the same class, 0 to 1.
        drop: Largest loss of accuracy, 0 to 1; of another metric, the largest relative loss.
    """

    snr_db: float
    agreement: float
    drop: float


@dataclass(frozen=True)
class Variant:
    """A numeric variant of a format.

    Attributes:
        name: Its name for ``--quantize``; ``float32`` is not quantized.
        scheme: How it computes in integers; None if it computes in float.
        float_bits: Bits of an element of a kernel of floats.
        rule: The limits of verification; None for a tolerance that is derived from rounding errors.
    """

    name: str
    scheme: IntegerScheme | None = None
    float_bits: int = 32
    rule: QualityRule | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of an element of a kernel."""
        return self.float_bits if self.scheme is None else self.scheme.weight_bits

    @property
    def widest_bits(self) -> int:
        """Most bits of an element of a kernel, where layers differ."""
        return 8 if self.scheme is not None and self.scheme.mixed else self.weight_bits

    @property
    def calibrated(self) -> bool:
        """Whether calibration data give the ranges of activations."""
        return self.scheme is not None and self.scheme.activations == "static"

    @property
    def needs_data(self) -> bool:
        """Whether it is nothing without data: for ranges of activations, or bits of layers."""
        return self.calibrated or (self.scheme is not None and self.scheme.mixed)
