"""Where artifacts will run, and what a call costs there."""

from exporter.targets.arithmetic import Macs, Micro
from exporter.targets.base import Target
from exporter.targets.emulated import Arm64
from exporter.targets.here import Here

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Here("here"),
        Arm64("arm64", "cortex-a76"),
        Arm64("arm64-old", "cortex-a53"),
        Micro("micro"),
        Macs("macs"),
    )
}

__all__ = ["TARGETS", "Target"]
