"""Fits data sets to Keras models, scaled as the models were trained."""

from dataclasses import replace
from typing import Any

import numpy as np

from exporter.data import Dataset, Scaling, Split, fit_to_model, in_memory, load_dataset, scaled
from exporter.data.fitting import holds_bytes
from exporter.datasets import NO_DATA
from exporter.errors import DataError, brief, did_you_mean
from exporter.graph.evidence import IDENTITY, Evidence
from exporter.graph.network import Network
from exporter.graph.sizes import resized
from exporter.graph.walk import first_operations
from exporter.options.groups import Source
from exporter.options.scale import AUTO, InputScale, Scale


def fitted(dataset: Any, network: Network, scale: Scale = AUTO, loss: Any = None) -> Dataset:
    """Fits a data set to a network; arrays may bear the Keras names of the input layers.

    Args:
        dataset: The data set, as it was loaded, or what ``load_dataset`` takes.
        network: The network.
        scale: How inputs are scaled. ``auto`` tries how models are commonly trained, and takes
            what the baseline's loss on labels, or the statistics in its weights, tell for.
        loss: What tells what labels mean; by default what the model was compiled with.

    Raises:
        DataError: If it does not fit.
        RecipeError: If the loss is none of Keras.
    """
    dataset, loss = load_dataset(dataset), network.compiled_loss if loss is None else loss
    name = network.signature.input_name

    def rename(part: Split) -> Split:
        return replace(part, inputs={name(key): array for key, array in part.inputs.items()})

    shaped = fit_to_model(dataset.map(rename), network.inputs, network.outputs, network.hints(loss))
    if not shaped.parts:
        return shaped
    _check_indices(shaped, network)
    asked = _by_input(scale, network)
    part = next(iter(shaped.parts.values()))
    bytes_in = {i.name for i in network.inputs if holds_bytes(part.inputs[i.name], i)}
    open_inputs = sorted(name for name in bytes_in if asked[name] == AUTO)
    scalings = {n: IDENTITY if s == AUTO else Scaling.of(s) for n, s in asked.items()}
    notes = [
        f"{n}: {_TOLD.get(s.name, f'scaled by {s.name}')}"
        for n, s in scalings.items()
        if not s.is_identity
    ]
    if open_inputs:
        evidence = Evidence(network, shaped, part, scalings, open_inputs)
        chosen, reason = evidence.choose()
        scalings |= dict.fromkeys(open_inputs, chosen)
        notes += [f"{n}: values of 0 to 255, {_TOLD[chosen.name]}: {reason}" for n in open_inputs]
    label_scalings = {}
    if bytes_in:
        evidence = Evidence(network, shaped, part, scalings, [])
        label_scalings = evidence.label_scalings(scalings[min(bytes_in)])
        for output, label_scaling in label_scalings.items():
            notes.append(f"labels of {output}: {_TOLD[label_scaling.name]}, like the input")
    result = scaled(shaped, network.inputs, scalings, label_scalings)
    return replace(result, notes=(*result.notes, *notes))


def fit_both(
    network: Network, dataset: Any, source: Source, loss: Any = None
) -> tuple[Network, Dataset]:
    """Fixes the free axes of a network as it is asked for, and fits a data set to it.

    Axes that stay free count with the sizes of the data; no data set is one without parts. For
    ``loss`` and errors see ``fitted``.

    Raises:
        RecipeError: If the network has not the axes that ``source.size`` fixes.
    """
    loss = network.compiled_loss if loss is None else loss  # A copy of other sizes has none.
    if source.size is not None:
        network = resized(network, source.size)
    dataset = fitted(NO_DATA if dataset is None else dataset, network, source.scale, loss)
    part = next(iter(dataset.parts.values()), None)
    if part and any(None in info.shape[1:] for info in network.inputs):
        sizes = {name: array.shape[1:] for name, array in part.inputs.items()}
        network = Network(network.model, sizes)
        _check_sizes(network, part)
    return network, dataset


def _check_sizes(network: Network, part: Split) -> None:
    """Raises a DataError if a network with free axes cannot compute samples of the data's sizes."""
    inputs = in_memory(part.take(slice(network.fixed_batch or 1)).inputs)
    try:
        network.runner(eager=True)(inputs)
    except Exception as error:  # The code of custom layers may raise anything.
        sizes = ", ".join(f"{name!r} {array.shape[1:]}" for name, array in inputs.items())
        raise DataError(
            f"Model {network.name!r} leaves sizes free, and cannot compute a sample of the data. "
            f"Received: {sizes}; {brief(error)} Give samples of a size that it can take."
        ) from error


def _check_indices(dataset: Dataset, network: Network) -> None:
    """Raises a DataError if an Embedding has no row for an index in arrays that are in memory."""
    import keras

    for number, layer in first_operations(network.model):
        if not isinstance(layer, keras.layers.Embedding):
            continue
        name, last = network.inputs[number].name, layer.input_dim - 1
        for part, split in dataset.parts.items():
            values = split.inputs[name]
            if not isinstance(values, np.ndarray) or not values.size:
                continue
            least, most = values.min(), values.max()
            if least < 0 or most > last:
                raise DataError(
                    f"Input {name!r} must hold indices of 0 to {last}, which Embedding "
                    f"{layer.name!r} has rows for. Received: {least} to {most} in the {part} part. "
                    "Map what is unknown to an index of its own."
                )


_TOLD = {
    "none": "left as they are",
    "unit": "scaled to [0, 1]",
    "symmetric": "scaled to [-1, 1]",
    "caffe": "scaled as 'caffe'",
    "torch": "scaled as 'torch'",
}


def _by_input(scale: Scale, network: Network) -> dict[str, InputScale]:
    names = [info.name for info in network.inputs]
    if not isinstance(scale, dict):
        return dict.fromkeys(names, scale)
    given = {network.signature.input_name(name): one for name, one in scale.items()}
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise DataError(
            f"scale is given for {unknown}. The inputs of the model: {names}."
            f"{did_you_mean(unknown, names)}"
        )
    return {name: given.get(name, AUTO) for name in names}
