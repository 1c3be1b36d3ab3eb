"""Numeric variants of formats, and what verification allows of each."""

from dataclasses import dataclass

from exporter.options.groups import FLOAT32
from exporter.quantization.scheme import IntegerScheme

__all__ = ["FLOAT32"]

FLOAT16 = "float16"
DYNAMIC = "dynamic"
INT8 = "int8"
INT16X8 = "int16x8"
INT4 = "int4"


@dataclass(frozen=True)
class ToleranceRule:
    """How much of the float32 rounding error of the model itself an artifact may differ by.

    The tolerance is ``max(multiple * e, floor_ulps * 2**-24 * largest)``, where ``e`` is the
    largest difference between TensorFlow's float32 and float64 predictions on the same inputs and
    ``largest`` is the largest absolute value predicted. See ``exporter.verification.tolerance``.
    """

    multiple: float = 10.0
    floor_ulps: float = 16.0


@dataclass(frozen=True)
class QualityRule:
    """What a quantized artifact must keep of the float model's predictions on the first probe.

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
        name: As in ``--quantize``; ``float32`` is what was not quantized.
        scheme: How it computes in integers; None if it computes in float.
        float_bits: Bits of an element of a kernel that is not of integers.
        rule: What verification allows.
    """

    name: str
    scheme: IntegerScheme | None = None
    float_bits: int = 32
    rule: ToleranceRule | QualityRule = ToleranceRule()

    @property
    def weight_bits(self) -> int:
        """Bits of an element of a kernel."""
        return self.float_bits if self.scheme is None else self.scheme.weight_bits

    @property
    def calibrated(self) -> bool:
        """Whether activations have ranges, which calibration data show."""
        return self.scheme is not None and self.scheme.activations == "static"
