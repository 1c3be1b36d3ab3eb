"""Fits data sets to Keras models."""

from dataclasses import replace

from exporter.data import Dataset, Split, fit_to_model
from exporter.graph.network import Network


def fitted(dataset: Dataset, network: Network) -> Dataset:
    """Fits a data set to a network; arrays may bear the Keras names of the input layers.

    Raises:
        DataError: If it does not fit.
    """
    name = network.signature.input_name

    def rename(part: Split) -> Split:
        return replace(part, inputs={name(key): array for key, array in part.inputs.items()})

    return fit_to_model(
        dataset.map(rename), network.inputs, network.outputs, scaled_inside=network.scales_input
    )
