"""``restore``: a model and the folder of a run go in, the compressed model of the run comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ModelError, OutputError, brief
from exporter.graph.network import Network
from exporter.graph.saving import weights_file
from exporter.graph.types import Model
from exporter.lowrank.engine import Engine, build_replacements
from exporter.lowrank.linalg.truncation import Truncation
from exporter.options.groups import Cut
from exporter.output import COMPRESSED_FILE, PLAN_FILE


def restore(model: Model | Callable[[], Model], folder: str | Path) -> Model:
    """Rebuilds the compressed model of a run whose folder has its weights and its plan.

    A run saves these two, instead of one file, where Keras could not rebuild the compressed model:
    factors inside custom layers, or lambdas.

    Args:
        model: The model that was compressed, with any weights, or a function that builds it.
        folder: The output folder of the run.

    Returns:
        A Keras model, not compiled, on which ``fit`` can go on.

    Raises:
        OutputError: If the folder has no such files.
        ModelError: If the model is not the one that was compressed.
    """
    import keras

    plan, weights = Path(folder) / PLAN_FILE, weights_file(Path(folder) / COMPRESSED_FILE)
    try:
        saved: dict[str, Any] = json.loads(plan.read_text())
        cut, ranks = Cut(**saved["cut"]), dict(saved["ranks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"The folder {str(folder)!r} must hold {PLAN_FILE} and {weights.name}, which a run "
            f"writes where Keras cannot load the compressed model by itself: {brief(error)} If it "
            f"has {COMPRESSED_FILE}, call keras.models.load_model."
        ) from error
    engine = Engine(Network.of(model if isinstance(model, keras.Model) else model()), cut=cut)
    chosen = [c for c in engine.candidates if c.name in ranks]
    truncations = {
        c.name: Truncation(
            tuple(map(np.zeros, c.kernel.factor_shapes(ranks[c.name], merge=cut.merge))), None, 0.0
        )
        for c in chosen
        if c.kernel is not None
    }
    try:
        if unknown := sorted(set(ranks) - set(truncations)):
            raise ValueError(f"it has no kernels {', '.join(unknown)}.")
        restored = engine.network.rewrite(build_replacements(chosen, truncations)).model
        restored.load_weights(weights)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"Model {engine.network.name!r} is not the one that was compressed into "
            f"{str(folder)!r}: {brief(error)} Build it as it was before."
        ) from error
    return restored
