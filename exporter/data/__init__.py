"""Data sets: the embedded digits, files, folders, pipelines; splits, checks and batches.

What does not fit into memory stays where it is: parts hold lazy arrays then, and their samples are
read when they are asked for.
"""

from exporter.data.batches import ArraySource, BatchSource
from exporter.data.dataset import Dataset
from exporter.data.fitting import UINT8_MAX, fit_to_model
from exporter.data.lazy import Array, LazyArray, Samples, in_memory, loaded_if_small
from exporter.data.loading import load_dataset
from exporter.data.pipelines import PipelineSource
from exporter.data.split import Split

__all__ = [
    "UINT8_MAX",
    "Array",
    "ArraySource",
    "BatchSource",
    "Dataset",
    "LazyArray",
    "PipelineSource",
    "Samples",
    "Split",
    "fit_to_model",
    "in_memory",
    "load_dataset",
    "loaded_if_small",
]
