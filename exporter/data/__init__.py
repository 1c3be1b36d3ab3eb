"""Loads, checks, divides and fits data sets; arrays too large for memory are read lazily."""

from exporter.data.dataset import ArraySource as ArraySource
from exporter.data.dataset import BatchSource as BatchSource
from exporter.data.dataset import Dataset as Dataset
from exporter.data.fitting import fit_to_model as fit_to_model
from exporter.data.fitting import scaled as scaled
from exporter.data.lazy import Array as Array
from exporter.data.lazy import LazyArray as LazyArray
from exporter.data.lazy import Samples as Samples
from exporter.data.lazy import in_memory as in_memory
from exporter.data.lazy import loaded_if_small as loaded_if_small
from exporter.data.loading import load_dataset as load_dataset
from exporter.data.pipelines import PipelineSource as PipelineSource
from exporter.data.scaling import UINT8_MAX as UINT8_MAX
from exporter.data.scaling import Scaling as Scaling
from exporter.data.split import Split as Split
from exporter.data.tasks import OutputHint as OutputHint
from exporter.data.tasks import Task as Task
