"""Fixes the axes of inputs that a model leaves free."""

from collections.abc import Sequence

from exporter.errors import RecipeError, did_you_mean
from exporter.graph.network import Network
from exporter.graph.rewrite import rewrite
from exporter.graph.signature import TensorInfo
from exporter.options.size import InputSize, Size


def resized(network: Network, size: Size) -> Network:
    """Copies a network for inputs of fixed sizes.

    Args:
        network: The network.
        size: For each input, or for the only one with free axes, the sizes of its free axes but
            the batch, or of all axes.

    Raises:
        RecipeError: If there is no such input, or it has other axes.
        ModelError: If a layer does not take inputs of these sizes.
    """
    named = network.signature.input_name
    given = size if isinstance(size, tuple) else {named(name): one for name, one in size.items()}
    sizes = fixed_shapes(network.inputs, given)
    return Network(rewrite(network.model, {}, sizes=network.signature.by_layer(sizes)))


def fixed_shapes(inputs: Sequence[TensorInfo], size: Size) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of samples that sizes give to the inputs that they fix, by name.

    Raises:
        RecipeError: If there is no such input, or it has other axes.
    """
    free = {info.name: info for info in inputs if None in info.shape[1:]}
    shown = "; ".join(f"{info.name} {info.shape[1:]}" for info in inputs)
    if not free:
        raise RecipeError(
            f"size fixes axes that a model leaves free, and this one leaves none but the batch. "
            f"Leave size out. Received: {size}. The inputs: {shown}."
        )
    if isinstance(size, tuple):
        if len(free) != 1:
            raise RecipeError(
                f"size must name its input, as NAME=96,96, unless one input alone has free axes. "
                f"Received: {size}. The inputs: {shown}."
            )
        size = dict.fromkeys(free, size)
    unknown = sorted(set(size) - set(free))
    if unknown:
        raise RecipeError(
            f"size must name inputs with free axes, {sorted(free)}. Received: {unknown}. The "
            f"inputs: {shown}.{did_you_mean(unknown, free)}"
        )
    return {name: _filled(free[name], one) for name, one in size.items()}


def _filled(info: TensorInfo, size: InputSize) -> tuple[int, ...]:
    shape, given = info.shape[1:], iter(size)
    filled = size
    if len(size) == shape.count(None):
        filled = tuple(each or next(given) for each in shape)
    if len(filled) != len(shape) or any(
        o not in {None, n} for o, n in zip(shape, filled, strict=True)
    ):
        raise RecipeError(
            f"size must be that of the {shape.count(None)} free axes of input {info.name!r}, of "
            f"shape {shape}, or of all its axes. Received: {size}."
        )
    return filled
