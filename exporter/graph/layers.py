"""Reads, calls and rebuilds single Keras layers.

Whatever is private in Keras and needed of a single layer is read here.
"""

import inspect
from typing import Any

from exporter.graph.types import Layer, Tensor


def addition(layer: Layer) -> str:
    """Says what a layer holds beside a plain kernel; empty if nothing."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized already"
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA adapter beside its kernel"
    return ""


def called_with(layer: Layer) -> dict[str, Any]:
    """Returns what the layer is called with, by argument name, the first time in its graph."""
    arguments = layer._inbound_nodes[0].arguments
    bound = inspect.signature(layer.call).bind(*arguments.args, **arguments.kwargs)
    return dict(bound.arguments)


def output_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first output, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].outputs[0].shape)


def input_shape(layer: Layer) -> tuple[int | None, ...]:
    """Returns the shape of the layer's first input, the first time in its graph."""
    return tuple(layer._inbound_nodes[0].input_tensors[0].shape)


def output_tensors(layer: Layer) -> list[Tensor]:
    """Returns the layer's outputs, the first time in its graph; none if it is not called."""
    return [tensor for node in layer._inbound_nodes[:1] for tensor in node.outputs]


def with_parts(layer: Layer) -> list[Layer]:
    """Returns the layer and all layers inside it, at any depth, the outer ones first."""
    return list(layer._flatten_layers())


def causal_padding(layer: Layer) -> list[list[int]]:
    """Returns how far a causal convolution pads each axis of its input, before and after."""
    padding: list[list[int]] = layer._compute_causal_padding()
    return padding


def attention_options(layer: Layer, *names: str) -> dict[str, Any]:
    """Returns arguments that a ``MultiHeadAttention`` was made with, by name."""
    return {name: getattr(layer, f"_{name}") for name in names}


def rebuild(original: Layer, input_shape: Any, weights: list[Any], **changes: Any) -> Layer:
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
