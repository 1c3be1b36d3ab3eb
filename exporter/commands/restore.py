"""``restore``: a model and the folder of a run go in, the compressed model of the run comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ModelError, OutputError, brief
from exporter.graph.network import Network
from exporter.graph.saving import weights_file
from exporter.graph.types import Model
from exporter.inputs import read_json
from exporter.lowrank.candidates import Candidate, candidates
from exporter.lowrank.engine import Engine, build_replacements
from exporter.lowrank.linalg.truncation import Truncation
from exporter.options.groups import Cut
from exporter.output import COMPRESSED_FILE, PLAN_FILE
from exporter.pruning.pruner import of_widths


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
        saved: dict[str, Any] = read_json(plan)
        cut, layers = Cut(**saved["cut"]), [(x["kind"], x["rank"]) for x in saved["layers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"The folder {str(folder)!r} must hold {PLAN_FILE} and {weights.name}, which a run "
            f"writes where Keras cannot load the compressed model by itself: {brief(error)} If it "
            f"has {COMPRESSED_FILE}, call keras.models.load_model."
        ) from error
    network = Network.of(model if isinstance(model, keras.Model) else model())
    widths = [(group["before"], group["after"]) for group in saved.get("channels", [])]
    # In order, because Keras gives other names to the layers of the next model.
    try:
        network = of_widths(network, widths)
        engine = Engine(network, cut=cut)
        found = candidates(network, merge=cut.merge, convolution=cut.convolution)
        if [candidate.kind for candidate in found] != [kind for kind, _ in layers]:
            raise ValueError(
                f"it has {len(found)} kernels, or others than the plan's {len(layers)}."
            )
        ranks = {c.name: rank for c, (_, rank) in zip(found, layers, strict=True) if rank}
        chosen = [candidate for candidate in engine.candidates if candidate.name in ranks]
        empty = {c.name: _empty(c, ranks[c.name]) for c in chosen}
        restored = engine.network.rewrite(build_replacements(chosen, empty)).model
        if [list(weight.shape) for weight in restored.weights] != saved["shapes"]:
            raise ValueError("its weights have other shapes.")
        restored.load_weights(weights)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"Model {network.name!r} is not the one that was compressed into {str(folder)!r}: "
            f"{brief(error)} Build it as it was before."
        ) from error
    return restored


def _empty(candidate: Candidate, rank: int) -> Truncation:
    """Returns factors of zeros in the shapes of a truncation."""
    if candidate.kernel is None:
        raise ValueError(f"{candidate.name} cannot be factorized.")
    shapes = candidate.kernel.factor_shapes(rank, merge=candidate.merge)
    return Truncation(tuple(map(np.zeros, shapes)), None, 0.0)
