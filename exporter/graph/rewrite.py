"""Copies Keras models with some layers replaced by chains of other layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.chain import chain
from exporter.graph.copying import Copier
from exporter.graph.hooks import replaced
from exporter.graph.layers import input_shape
from exporter.graph.signature import unique_name
from exporter.graph.types import Layer, Model, Tensor, Variable
from exporter.graph.walk import calls, is_graph, is_of_keras, walk


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

    def as_layer(self, original: Layer, *, wrapped: bool = False) -> Layer:
        """Returns one layer that takes the place of another one inside its owner.

        Where it is ``wrapped`` by a layer of Keras, it is a Sequential model, which can be saved.
        """
        import keras

        if len(self.layers) == 1:
            return self.layers[0]
        if wrapped:
            inputs = keras.Input(batch_shape=(None, *input_shape(original)[1:]))
            return keras.Sequential([inputs, *self.layers], name=original.name)
        return chain(original, self.layers, replace(self, factors={}))


def rewrite(
    model: Model,
    replacements: Mapping[str, Replacement],
    dropped: Iterable[str] = (),
    *,
    dtype: str | None = None,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
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
        dtype: What replaces every floating point dtype; None keeps them.
        sizes: The shape of a sample of an input, by the name of its input layer, where that is to
            be changed.

    Returns:
        A model of the same name, not compiled.

    Raises:
        ModelError: If the copy of a layer cannot be called as the original was.
    """
    changes = {**replacements, **dict.fromkeys(dropped, Replacement((), {}))}
    copier = _ModelCopier(model, changes, dtype)
    taken = {layer.name for _, layer in walk(model)}
    for replacement in copier.replacements.values():
        for head in replacement.layers[:-1]:
            head.name = unique_name(head.name, taken)
    try:
        return copier.copy_model(model, sizes)
    except Exception as error:  # The code of custom layers may raise anything.
        raise ModelError(
            f"Model {model.name!r} cannot be copied layer by layer: {brief(error)}"
        ) from error


class _ModelCopier:
    def __init__(self, model: Model, changes: Mapping[str, Replacement], dtype: str | None) -> None:
        import keras

        layers = dict(walk(model))
        self.replacements = {id(x): changes[path] for path, x in layers.items() if path in changes}
        times = (x for x in layers.values() if type(x) is keras.layers.TimeDistributed)
        self._wrapped, self._dtype = {id(layer.layer) for layer in times}, dtype
        self._copy = Copier(self._stand_in, dtype)

    def copy_model(self, model: Model, sizes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
        import keras

        copy_input = partial(self._copy_input, sizes or {})
        with replaced([*self._known_outputs(model), (model, "compiled", False)]):
            if isinstance(model, keras.Sequential):
                layers = [copy_input(model.inputs[0])]
                for copied in map(self._copy_called, model.layers):
                    layers.extend(copied.layers if isinstance(copied, Replacement) else [copied])
                copy = keras.Sequential(layers, name=model.name)
            else:
                # clone_model would copy loss and optimizer of a compiled model.
                copy = keras.models.clone_model(
                    model,
                    # By default it would name the inputs after their tensors.
                    input_tensors=keras.tree.map_structure(copy_input, model.input),
                    clone_function=self._copy_called,
                )
        if not model.trainable:
            copy.trainable = False
        return copy

    def _known_outputs(self, model: Model) -> Iterator[tuple[Any, str, Any]]:
        """Yields patches by which copies of Keras' layers know their outputs, untraced.

        Custom layers are traced, to see whether their copies can be called.
        """
        nodes: dict[int, list[Any]] = {}
        for node in calls(model)[1]:
            if not node.is_input and is_of_keras(node.operation):
                nodes.setdefault(id(node.operation), []).append(node)
        for made in [] if self._dtype else nodes.values():
            copy = self._copy_called(made[0].operation)
            if not isinstance(copy, Replacement) and _is_as_large(copy, made[0].operation):
                compute = partial(_compute_outputs, iter(made), copy.compute_output_spec)
                yield copy, "compute_output_spec", compute

    def _copy_called(self, operation: Layer) -> Layer | Replacement:
        """Copies a layer of a graph once, however often it is called, or returns its chain."""
        return self.replacements.get(id(operation)) or self._copy(operation)

    def _stand_in(self, layer: Layer) -> Layer | None:
        """Returns what takes the place of a layer inside another one."""
        replacement = self.replacements.get(id(layer))
        if replacement is not None:
            return replacement.as_layer(layer, wrapped=id(layer) in self._wrapped)
        return self.copy_model(layer) if is_graph(layer) else None

    def _copy_input(self, sizes: Mapping[str, tuple[int, ...]], tensor: Tensor) -> Tensor:
        import keras

        recast, name = self._dtype and "float" in tensor.dtype, tensor._keras_history.operation.name
        return keras.Input(
            batch_shape=(tensor.shape[0], *sizes[name]) if name in sizes else tensor.shape,
            dtype=self._dtype if recast else tensor.dtype,
            sparse=tensor.sparse,
            name=name,
        )


def _is_as_large(copy: Layer, original: Layer) -> bool:
    """Tells whether a copy gives what the original does; layers inside it may give less."""
    if not is_graph(copy):
        return True
    return [x.shape for x in copy.outputs] == [x.shape for x in original.outputs]


def _compute_outputs(
    nodes: Iterator[Any], compute: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns the symbolic outputs of a copy's next call: the original's for inputs alike."""
    import keras

    def shapes(given: Any) -> list[Any]:
        return [getattr(each, "shape", None) for each in keras.tree.flatten(given)]

    node = next(nodes)
    arguments = node.arguments
    # Keras has added arguments, such as masks.
    named = {name: kwargs.get(name) for name in arguments.kwargs}
    if shapes((args, named)) != shapes((arguments.args, arguments.kwargs)):
        return compute(*args, **kwargs)
    outputs = [keras.KerasTensor(x.shape, x.dtype, sparse=x.sparse) for x in node.outputs]
    return outputs[0] if len(outputs) == 1 else outputs
