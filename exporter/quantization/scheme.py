"""Integer schemes: how a runtime computes in integers."""

from dataclasses import dataclass
from typing import Literal

from exporter.quantization.granularity import Granularity


@dataclass(frozen=True)
class KernelFormat:
    """The integers of a kernel.

    Attributes:
        granularity: Whether a ``"tensor"`` or each ``"channel"`` has a scale.
        bits: Bits of an integer.
        symmetric: Whether zero lies in the middle of the range; else the range of the weights is
            spread over all integers.
        signed: Whether the ends of a symmetric range are integers. Unsigned ones divide it by the
            odd number of all steps, and zero lies on one of two in the middle.
    """

    granularity: Granularity
    bits: int = 8
    symmetric: bool = True
    signed: bool = True


@dataclass(frozen=True)
class IntegerScheme:
    """The numbers of a model that become integers, and their bits.

    Attributes:
        activations: ``"dynamic"`` quantizes the inputs of linear layers by their own range at each
            call; ``"static"`` quantizes every activation by its range on calibration data.
        weight_bits: Bits of a kernel; 8 where the runtime has no operator for fewer.
        mixed: Whether each kernel has these bits or 8, by what they cost; see ``wide``.
        wide: Names of the layers whose kernels have 8 bits.
        activation_bits: Bits of an activation.
        symmetric: The granularities at which the integers of kernels are symmetric about zero. At
            others the range of the weights is spread over all integers.
        signed: Whether symmetric integers are signed.
        dynamic_range: Whether a ``"row"`` (for convolutions: a sample) or the ``"batch"`` shares a
            dynamic range.
        granularity: The granularity of the scales of kernels.
        convolutions: The integers of kernels of convolutions, whatever ``granularity`` is.
        smallest_kernel: Elements below which a kernel and its inputs stay in float.
        float_sums: Whether the outputs of dense layers stay in float unless another operator takes
            them as integers.
    """

    activations: Literal["dynamic", "static"]
    weight_bits: int = 8
    mixed: bool = False
    wide: frozenset[str] = frozenset()
    activation_bits: int = 8
    symmetric: tuple[Granularity, ...] = ("tensor", "channel")
    signed: bool = True
    dynamic_range: Literal["row", "batch"] = "row"
    granularity: Granularity = "tensor"
    convolutions: KernelFormat | None = None
    smallest_kernel: int = 0
    float_sums: bool = False


def levels(bits: int) -> int:
    """Returns the number of steps between the least and the greatest integer of some bits."""
    return int(2**bits - 1)
