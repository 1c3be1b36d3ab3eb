"""Lists the kernels of a model that can be factorized."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from exporter.graph.calls import first_call
from exporter.graph.network import Network
from exporter.graph.types import Layer
from exporter.graph.walk import own_weights
from exporter.lowrank.factorizers import Factorizer, factorizer_for, reason_kept
from exporter.lowrank.kernels import Kernel

CostKind = Literal["params", "macs"]


@dataclass(frozen=True)
class Candidate:
    """A kernel, or a layer with weights that has none, as rank policies see it.

    Attributes:
        name: The path, followed by the name of the kernel if the layer has several.
        path: Path of the layer: the names of the nested models that hold it, and its own.
        kind: Keras class name of the layer.
        layer: The layer.
        factorizer: The factorizer of the layer; None if it cannot be factorized.
        kernel: The kernel; None if there is none to factorize.
        merge: Whether S would be merged into U.
        note: Why there is no kernel.
        times: How often the layer is called for one sample.
    """

    name: str
    path: str
    kind: str
    layer: Layer
    factorizer: Factorizer | None
    kernel: Kernel | None
    merge: bool = True
    note: str = ""
    times: int = 1

    def params(self, rank: int | None = None) -> int:
        """Counts the parameters at a rank; None is the layer as it is."""
        if self.kernel is None:
            return sum(prod(weight.shape) for weight in own_weights(self.layer))
        return self.kernel.params(rank, merge=self.merge)

    def macs(self, rank: int | None = None) -> int | None:
        """Counts the multiply-accumulates at a rank; None if the layer cannot be factorized."""
        if self.kernel is None:
            return None
        return self.times * self.kernel.macs(rank, merge=self.merge)

    def cost(self, kind: CostKind, rank: int | None) -> int:
        """Counts the parameters or the multiply-accumulates at a rank."""
        return self.params(rank) if kind == "params" else self.macs(rank) or 0


def factorizable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that have a kernel."""
    return [candidate for candidate in candidates if candidate.kernel is not None]


def listing(candidates: Sequence[Candidate]) -> str:
    """Lists names and shapes of what can be factorized."""
    shapes = [f"{c.name} ({c.kernel.m} x {c.kernel.n})" for c in candidates if c.kernel]
    return ", ".join(shapes) or "none can be factorized"


def candidates(
    network: Network, *, merge: bool = True, convolution: str = "channel"
) -> list[Candidate]:
    """Lists the kernels, and the layers with weights that have none, in the order of the layers.

    For ``merge`` and ``convolution`` see ``Cut``. Multiply-accumulates are exact within
    ``of_one_sample``.
    """
    found = []
    for path, layer in network.layers.items():
        if not own_weights(layer):
            continue
        kind, factorizer = type(layer).__name__, factorizer_for(layer, convolution)
        if factorizer is None:
            note = reason_kept(layer)
            found.append(Candidate(path, path, kind, layer, None, None, merge, note))
            continue
        for kernel in factorizer.kernels(layer):
            name = f"{path}/{kernel.name}" if kernel.name else path
            call = first_call(layer)
            times = call.times if call else 1
            found.append(Candidate(name, path, kind, layer, factorizer, kernel, merge, times=times))
    return found
