"""Exports trained Keras models as small, fast and proven edge artifacts.

The names below are the public API. They are imported when they are first used, so that
``import exporter`` loads neither TensorFlow nor a runtime.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.card import ModelCard, Normalization
    from exporter.commands.compress import compress
    from exporter.commands.export import export
    from exporter.commands.finetune import finetune
    from exporter.commands.inspect import inspect
    from exporter.commands.run import run, run_worker
    from exporter.commands.verify import verify
    from exporter.data import Dataset, load_dataset
    from exporter.errors import (
        ClusterError,
        ConversionError,
        DataError,
        ExporterError,
        InputError,
        ModelError,
        OutputError,
        RecipeError,
    )
    from exporter.formats.base import Artifact
    from exporter.lowrank.engine import Compressed
    from exporter.recipe.recipe import Recipe
    from exporter.report.results import Inspection, Report
    from exporter.training.finetune import FineTuned
    from exporter.verification.verifier import ConversionVerdict

__version__ = "0.1.0"

_MODULES = {
    "Artifact": "formats.base",
    "ClusterError": "errors",
    "Compressed": "lowrank.engine",
    "ConversionError": "errors",
    "ConversionVerdict": "verification.verifier",
    "DataError": "errors",
    "Dataset": "data",
    "ExporterError": "errors",
    "FineTuned": "training.finetune",
    "InputError": "errors",
    "Inspection": "inspection",
    "ModelCard": "card",
    "ModelError": "errors",
    "Normalization": "card",
    "OutputError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report.results",
    "compress": "lowrank.compress",
    "export": "artifacts",
    "finetune": "training.finetune",
    "inspect": "inspection",
    "load_dataset": "data",
    "run": "pipeline",
    "run_worker": "pipeline",
    "verify": "artifacts",
}

__all__ = [
    "Artifact",
    "ClusterError",
    "Compressed",
    "ConversionError",
    "ConversionVerdict",
    "DataError",
    "Dataset",
    "ExporterError",
    "FineTuned",
    "InputError",
    "Inspection",
    "ModelCard",
    "ModelError",
    "Normalization",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Report",
    "compress",
    "export",
    "finetune",
    "inspect",
    "load_dataset",
    "run",
    "run_worker",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
