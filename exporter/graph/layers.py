"""Reads, calls and rebuilds single Keras layers."""

import inspect
from typing import Any


def unsupported_feature(layer: Any) -> str:
    """Says what a layer holds beside a plain kernel; empty if nothing."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized already"
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA adapter beside its kernel"
    return ""


def called_with(layer: Any) -> dict[str, Any]:
    """Returns what the layer is called with, by argument name, the first time in its graph."""
    arguments = layer._inbound_nodes[0].arguments
    bound = inspect.signature(layer.call).bind(*arguments.args, **arguments.kwargs)
    return dict(bound.arguments)


def output_shape(layer: Any) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first output, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].outputs[0].shape)


def input_shape(layer: Any) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first input, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].input_tensors[0].shape)


def rebuild(original: Any, input_shape: Any, weights: list[Any], **changes: Any) -> Any:
    """Builds a layer from the original's configuration, with changes, and sets its weights.

    Args:
        original: The layer that is copied.
        input_shape: With the batch axis.
        weights: Arrays in the order of ``layer.weights``.
        changes: Entries of the configuration.
    """
    layer = type(original).from_config({**original.get_config(), **changes})
    layer.build(input_shape)
    layer.set_weights(weights)
    return layer
