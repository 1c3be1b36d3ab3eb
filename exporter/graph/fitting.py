"""Fits data sets to Keras models."""

from dataclasses import replace
from typing import Any

from exporter.data import Dataset, Split, fit_to_model
from exporter.graph.layers import kind_of
from exporter.graph.signature import Signature
from exporter.graph.walk import walk


def scales_input(model: Any) -> bool:
    """Tells whether the model has a layer that rescales or normalises what it is given."""
    return any(kind_of(layer, inherited=True).scales_input for _, layer in walk(model))


def fitted(dataset: Dataset, model: Any) -> Dataset:
    """Fits a data set to a Keras model; arrays may bear the Keras names of the input layers.

    Raises:
        DataError: If it does not fit.
    """
    signature = Signature(model)

    def rename(part: Split) -> Split:
        return replace(part, inputs={signature.input_name(n): a for n, a in part.inputs.items()})

    return fit_to_model(
        dataset.map(rename), signature.inputs, signature.outputs, scaled_inside=scales_input(model)
    )
