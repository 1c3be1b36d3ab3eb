"""How a runtime computes in integers."""

from dataclasses import dataclass
from typing import Literal

from exporter.quantization.granularity import Granularity


@dataclass(frozen=True)
class IntegerScheme:
    """Which numbers of a model become integers, and of how many bits.

    Attributes:
        activations: ``"dynamic"``: the inputs of linear layers become integers when these are
            called, with ranges that are taken then. ``"static"``: every activation has one range,
            which calibration data showed.
        weight_bits: Bits of a kernel; 8 where the runtime has no operator for fewer.
        activation_bits: Bits of an activation.
        symmetric: The granularities at which the integers of kernels are symmetric about zero. At
            others the range of the weights is spread over all integers.
        dynamic_range: What shares a dynamic range: a ``"row"`` (for convolutions: a sample), or the
            ``"batch"``.
        convolutions: The granularity of kernels of convolutions, if it is not free.
        smallest_kernel: Elements below which a kernel, and what it multiplies, stay in float.
        float_sums: Whether the sums of dense layers stay in float unless another operator takes
            them as integers.
    """

    activations: Literal["dynamic", "static"]
    weight_bits: int = 8
    activation_bits: int = 8
    symmetric: tuple[Granularity, ...] = ("tensor", "channel")
    dynamic_range: Literal["row", "batch"] = "row"
    convolutions: Granularity | None = None
    smallest_kernel: int = 0
    float_sums: bool = False


@dataclass(frozen=True)
class KernelFormat:
    """The integers that a kernel is rounded to.

    Attributes:
        granularity: What shares a scale.
        bits: Bits of an integer.
        symmetric: Whether they are symmetric about zero.
    """

    granularity: Granularity
    bits: int = 8
    symmetric: bool = True


def levels(bits: int) -> int:
    """Returns how many steps lie between the least and the greatest integer of so many bits."""
    return int(2**bits - 1)
