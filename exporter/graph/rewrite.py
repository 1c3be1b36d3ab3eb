"""Copies Keras models with some layers replaced by chains of other layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.hooks import replaced
from exporter.graph.layers import finalize
from exporter.graph.signature import unique_name
from exporter.graph.types import Layer, Model, Tensor, Variable
from exporter.graph.walk import is_graph, walk


@dataclass(frozen=True)
class Replacement:
    """A chain of layers that stands in for one layer; an empty chain returns its input.

    Attributes:
        layers: Built Keras layers, in the order in which they are called. The last one bears the
            name of the original, so that output names and ``get_layer`` keep their meaning.
        factors: The weights that stand in for each kernel, by its name.
    """

    layers: tuple[Layer, ...]
    factors: Mapping[str, tuple[Variable, ...]]

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Calls one layer after the other; arguments beside the input go to the last one."""
        for head in self.layers[:-1]:
            inputs = head(inputs)
        return self.layers[-1](inputs, *args, **kwargs) if self.layers else inputs


def rewrite(
    model: Model, replacements: Mapping[str, Replacement], dropped: Iterable[str] = ()
) -> Model:
    """Copies a model, with each named layer replaced by a chain of built layers.

    Everything else is copied with its weights, so that training the copy leaves the original
    unchanged. Sharing, nesting, trainability, and the structure of inputs and outputs are kept.
    Loss and optimizer are not kept, because a custom one cannot be copied.

    Args:
        model: A model that ``Network`` accepts.
        replacements: Chains by path of the layer. All layers of a chain but the last one are
            renamed where the model has their name already.
        dropped: Paths of layers that are left out.

    Returns:
        A model of the same name, not compiled.

    Raises:
        ModelError: If a layer cannot be copied from its configuration.
    """
    changes = {**replacements, **dict.fromkeys(dropped, Replacement((), {}))}
    copier = _Copier({id(layer): changes[p] for p, layer in walk(model) if p in changes})
    taken = {layer.name for _, layer in walk(model)}
    for replacement in copier.replacements.values():
        for head in replacement.layers[:-1]:
            head.name = unique_name(head.name, taken)
    try:
        copy = copier.copy_model(model)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"Model {model.name!r} cannot be copied layer by layer: {brief(error)} Custom layers "
            "need a get_config() that returns all arguments of their constructor."
        ) from error
    for original, layer in copier.copies.values():
        if not is_graph(original) and getattr(original, "weights", None):
            layer.set_weights(original.get_weights())
            finalize(layer)
    return copy


class _Copier:
    def __init__(self, replacements: Mapping[int, Replacement]) -> None:
        self.replacements = replacements
        # By identity of the original, which is kept so that no other object takes its identity.
        self.copies: dict[int, tuple[Any, Any]] = {}

    def copy_model(self, model: Model) -> Model:
        import keras

        if isinstance(model, keras.Sequential):
            layers = [_copy_input(model.inputs[0])]
            for copied in map(self._copy, model.layers):
                layers.extend(copied.layers if isinstance(copied, Replacement) else [copied])
            copy = keras.Sequential(layers, name=model.name)
        else:
            # clone_model would copy loss and optimizer of a compiled model.
            with replaced([(model, "compiled", False)]):
                copy = keras.models.clone_model(
                    model,
                    # By default it would name the inputs after their tensors.
                    input_tensors=keras.tree.map_structure(_copy_input, model.input),
                    clone_function=self._copy,
                )
        if not model.trainable:
            copy.trainable = False
        return copy

    def _copy(self, operation: Layer) -> Layer | Replacement:
        """Copies a layer once, however often it is called, or returns its replacement."""
        key = id(operation)
        if key in self.replacements:
            return self.replacements[key]
        if key not in self.copies:
            if is_graph(operation):
                copy = self.copy_model(operation)
            else:
                copy = type(operation).from_config(operation.get_config())
            self.copies[key] = (operation, copy)
        return self.copies[key][1]


def _copy_input(tensor: Tensor) -> Tensor:
    import keras

    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=tensor._keras_history.operation.name,
    )
