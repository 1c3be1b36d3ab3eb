"""Wraps subclassed Keras models, which have no graph, as Functional ones of one layer."""

import inspect
from typing import Any

from exporter.errors import ModelError, brief
from exporter.graph.hooks import called
from exporter.graph.layers import with_parts
from exporter.graph.types import Model, Tensor


def as_functional(model: Model) -> Model:
    """Calls a subclassed model on inputs of the shapes that it was built with.

    Inputs are floats, but for those that an embedding takes as they are.

    Raises:
        ModelError: If the model was never called or built, or cannot be called symbolically.
    """
    import keras

    shapes = model._build_shapes_dict
    if not model.built or not shapes:
        raise ModelError(
            f"The subclassed model {model.name!r} has not been built, so the shapes of its inputs "
            "are unknown. Call it on a batch of data, or call model.build(input_shape)."
        )
    embeddings = [x for x in with_parts(model) if isinstance(x, keras.layers.Embedding)]
    try:
        inputs = _inputs(model, shapes, "float32")
        with called([model, *embeddings]) as calls:
            outputs = model(**inputs)
        ((given, _),) = calls.pop(id(model))
        taken = {id(tensor) for noted in calls.values() for tensor, _ in noted}
        indices = [id(tensor) in taken for tensor in keras.tree.flatten(given)]
        if any(indices):
            inputs = _inputs(model, shapes, *("int32" if each else "float32" for each in indices))
            outputs = model(**inputs)
        return keras.Model(
            next(iter(inputs.values())) if len(inputs) == 1 else inputs, outputs, name=model.name
        )
    except Exception as error:  # The code of the model may raise anything.
        raise ModelError(
            f"The subclassed model {model.name!r} cannot be called on inputs of the shapes "
            f"{shapes}: {brief(error)} Give keras.Model(inputs, model(inputs)) in its place."
        ) from error


def _inputs(model: Model, shapes: dict[str, Any], *dtypes: str) -> dict[str, Any]:
    """Makes inputs by the names of the arguments of ``call``; the last type counts for the rest."""
    import keras

    remaining = list(dtypes)

    def make(shape: tuple[int | None, ...], name: str | None = None) -> Tensor:
        dtype = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return keras.Input(batch_shape=(None, *shape[1:]), dtype=dtype, name=name)

    arguments = list(inspect.signature(model.call).parameters)
    names = arguments[:1] if len(shapes) == 1 else [n.removesuffix("_shape") for n in shapes]
    made: dict[str, Any] = {}
    for name, shape in zip(names, shapes.values(), strict=True):
        if isinstance(shape, dict):
            made[name] = {key: make(shape[key], key) for key in sorted(shape)}
        elif shape and isinstance(shape[0], (list, tuple)):
            made[name] = [make(tuple(each)) for each in shape]
        else:
            made[name] = make(tuple(shape), name)
    return made
