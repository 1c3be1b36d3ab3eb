"""Exports trained Keras models as small, fast and proven edge artifacts.

The names below are the public API. They are imported when they are first used, so that
``import exporter`` loads neither TensorFlow nor a runtime. It has Keras use TensorFlow, whatever
the environment says, because models are exported by it.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from exporter.version import __version__ as __version__

if TYPE_CHECKING:  # The aliases tell type checkers that these names are public.
    from exporter.card import ModelCard as ModelCard
    from exporter.card import Normalization as Normalization
    from exporter.commands.benchmark import benchmark as benchmark
    from exporter.commands.compare import compare as compare
    from exporter.commands.compress import compress as compress
    from exporter.commands.doctor import doctor as doctor
    from exporter.commands.export import export as export
    from exporter.commands.finetune import finetune as finetune
    from exporter.commands.forecast import dry_run as dry_run
    from exporter.commands.inspect import inspect as inspect
    from exporter.commands.report import write_report as write_report
    from exporter.commands.restore import restore as restore
    from exporter.commands.run import run as run
    from exporter.commands.run import run_worker as run_worker
    from exporter.commands.sweep import dry_sweep as dry_sweep
    from exporter.commands.sweep import sweep as sweep
    from exporter.commands.tracking import log_mlflow as log_mlflow
    from exporter.commands.verify import verify as verify
    from exporter.commands.verify import verify_stored as verify_stored
    from exporter.data import Dataset as Dataset
    from exporter.data import load_dataset as load_dataset
    from exporter.errors import ClusterError as ClusterError
    from exporter.errors import ConversionError as ConversionError
    from exporter.errors import DataError as DataError
    from exporter.errors import ExporterError as ExporterError
    from exporter.errors import InputError as InputError
    from exporter.errors import ModelError as ModelError
    from exporter.errors import OutputError as OutputError
    from exporter.errors import PluginError as PluginError
    from exporter.errors import RecipeError as RecipeError
    from exporter.errors import TrackingError as TrackingError
    from exporter.formats.base import Artifact as Artifact
    from exporter.formats.base import ExportOptions as ExportOptions
    from exporter.formats.base import Format as Format
    from exporter.formats.base import Runner as Runner
    from exporter.formats.base import StoredTensor as StoredTensor
    from exporter.formats.variants import Variant as Variant
    from exporter.graph.layers import LayerKind as LayerKind
    from exporter.graph.network import Network as Network
    from exporter.graph.signature import TensorInfo as TensorInfo
    from exporter.lowrank.engine import Compressed as Compressed
    from exporter.lowrank.factorizers.base import Factorizer as Factorizer
    from exporter.lowrank.kernels import Kernel as Kernel
    from exporter.recipe import Recipe as Recipe
    from exporter.recipes import load_recipe as load_recipe
    from exporter.report.benchmark import Benchmark as Benchmark
    from exporter.report.comparison import Comparison as Comparison
    from exporter.report.diagnosis import Diagnosis as Diagnosis
    from exporter.report.forecast import Forecast as Forecast
    from exporter.report.results import ArtifactReport as ArtifactReport
    from exporter.report.results import Inspection as Inspection
    from exporter.report.results import Report as Report
    from exporter.tradeoff.front import Point as Point
    from exporter.tradeoff.front import Sweep as Sweep
    from exporter.training.callback import RankAware as RankAware
    from exporter.training.finetune import FineTuned as FineTuned
    from exporter.verification.verdict import ConversionVerdict as ConversionVerdict

if "keras" not in sys.modules:  # Keras reads it once, when it is imported.
    os.environ["KERAS_BACKEND"] = "tensorflow"
if "tensorflow" not in sys.modules:
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
# On import, onnxruntime would write identifiers, and may send facts of models to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "card": ["ModelCard", "Normalization"],
    "commands.benchmark": ["benchmark"],
    "commands.compare": ["compare"],
    "commands.compress": ["compress"],
    "commands.doctor": ["doctor"],
    "commands.export": ["export"],
    "commands.finetune": ["finetune"],
    "commands.forecast": ["dry_run"],
    "commands.inspect": ["inspect"],
    "commands.report": ["write_report"],
    "commands.restore": ["restore"],
    "commands.run": ["run", "run_worker"],
    "commands.sweep": ["dry_sweep", "sweep"],
    "commands.tracking": ["log_mlflow"],
    "commands.verify": ["verify", "verify_stored"],
    "data": ["Dataset", "load_dataset"],
    "errors": [
        "ClusterError",
        "ConversionError",
        "DataError",
        "ExporterError",
        "InputError",
        "ModelError",
        "OutputError",
        "PluginError",
        "RecipeError",
        "TrackingError",
    ],
    "formats.base": ["Artifact", "ExportOptions", "Format", "Runner", "StoredTensor"],
    "formats.variants": ["Variant"],
    "graph.layers": ["LayerKind"],
    "graph.network": ["Network"],
    "graph.signature": ["TensorInfo"],
    "lowrank.engine": ["Compressed"],
    "lowrank.factorizers.base": ["Factorizer"],
    "lowrank.kernels": ["Kernel"],
    "recipe": ["Recipe"],
    "report.benchmark": ["Benchmark"],
    "report.comparison": ["Comparison"],
    "recipes": ["load_recipe"],
    "report.diagnosis": ["Diagnosis"],
    "report.forecast": ["Forecast"],
    "report.results": ["ArtifactReport", "Inspection", "Report"],
    "tradeoff.front": ["Point", "Sweep"],
    "training.callback": ["RankAware"],
    "training.finetune": ["FineTuned"],
    "verification.verifier": ["ConversionVerdict"],
}

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - ruff takes it for no list


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
