"""Graph surgery: a copy of a Keras model in which some layers are chains of other layers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.layers import finalize
from exporter.graph.types import Layer, Model, Tensor, Variable
from exporter.graph.walk import is_graph, walk


@dataclass(frozen=True)
class Replacement:
    """The layers that stand in for one.

    Attributes:
        layers: Built Keras layers, in the order in which they are called. The last one bears the
            name of the original, so that output names and ``get_layer`` keep their meaning.
        factors: The weights that stand in for each kernel, by its name.
    """

    layers: tuple[Layer, ...]
    factors: Mapping[str, tuple[Variable, ...]]

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Calls one layer after the other; what is not the input goes to the last one."""
        *heads, last = self.layers
        for head in heads:
            inputs = head(inputs)
        return last(inputs, *args, **kwargs)


def rewrite(
    model: Model, replacements: Mapping[str, Replacement], dropped: Iterable[str] = ()
) -> Model:
    """Copies a model, with each named layer replaced by a chain of built layers.

    Everything else is copied with its weights, so that training the copy leaves the original as
    it was. Sharing, nesting, trainability, and the structure of inputs and outputs are kept; loss
    and optimizer are not: those of the user's own cannot be copied.

    Args:
        model: A model that ``Network`` accepts.
        replacements: What to call instead, by path of the layer. All layers of a replacement but
            the last one are renamed where the model has their name already.
        dropped: Paths of layers that are left out: what goes in comes out.

    Returns:
        A model of the same name, not compiled.

    Raises:
        ModelError: If a layer cannot be copied from its configuration.
    """
    left_out = set(dropped)
    by_identity = {
        id(layer): replacements[path] for path, layer in walk(model) if path in replacements
    }
    _make_names_unique(model, by_identity.values())
    copier = _Copier(by_identity, {id(layer) for path, layer in walk(model) if path in left_out})
    try:
        copy = copier.copy_model(model)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"Model {model.name!r} cannot be copied layer by layer: {brief(error)} Custom layers "
            "need a get_config() that returns all arguments of their constructor."
        ) from error
    copier.copy_weights()
    return copy


class _Copier:
    def __init__(self, replacements: Mapping[int, Replacement], dropped: set[int]) -> None:
        self._replacements = replacements
        self._by_last = {id(r.layers[-1]): r for r in replacements.values()}
        self._dropped = dropped
        self._copies: dict[int, tuple[Any, Any]] = {}

    def copy_model(self, model: Model) -> Model:
        import keras

        if isinstance(model, keras.Sequential):
            copy = self._copy_sequential(model)
        else:
            with _not_compiled(model):
                copy = keras.models.clone_model(
                    model,
                    # By default it would name the inputs after their tensors.
                    input_tensors=keras.tree.map_structure(_copy_input, model.input),
                    clone_function=self._copy_operation,
                    call_function=self._call,
                )
        if not model.trainable:
            copy.trainable = False
        return copy

    def copy_weights(self) -> None:
        for original, copy in self._copies.values():
            if not is_graph(original) and getattr(original, "weights", None):
                copy.set_weights(original.get_weights())
                finalize(copy)

    def _copy_sequential(self, model: Model) -> Model:
        import keras

        layers = [_copy_input(model.inputs[0])]
        for layer in model.layers:
            if id(layer) in self._dropped:
                continue
            copy = self._copy_operation(layer)
            replacement = self._by_last.get(id(copy))
            layers.extend(replacement.layers if replacement else [copy])
        return keras.Sequential(layers, name=model.name)

    def _copy_operation(self, operation: Layer) -> Layer:
        """Copies a layer once, however often it is called."""
        key = id(operation)
        if key in self._dropped:
            return operation
        if key in self._replacements:
            return self._replacements[key].layers[-1]
        if key not in self._copies:
            if is_graph(operation):
                copy = self.copy_model(operation)
            else:
                copy = type(operation).from_config(operation.get_config())
            # The original is kept as well: its identity is the key.
            self._copies[key] = (operation, copy)
        return self._copies[key][1]

    def _call(self, operation: Layer, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in self._dropped:
            return args[0] if args else kwargs["inputs"]
        replacement = self._by_last.get(id(operation))
        return (replacement or operation)(*args, **kwargs)


def _copy_input(tensor: Tensor) -> Tensor:
    import keras

    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=tensor._keras_history.operation.name,
    )


@contextmanager
def _not_compiled(model: Model) -> Iterator[None]:
    """Keeps ``clone_model`` from copying loss and optimizer."""
    compiled, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = compiled


def _make_names_unique(model: Model, replacements: Iterable[Replacement]) -> None:
    """Renames layers that would bear the name of another one."""
    taken = {layer.name for _, layer in walk(model)}
    for replacement in replacements:
        for layer in replacement.layers[:-1]:
            base, count = layer.name, 1
            while layer.name in taken:
                layer.name, count = f"{base}_{count}", count + 1
            taken.add(layer.name)
