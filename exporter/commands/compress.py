"""``compress``: a model and a rank go in, a compressed model comes out."""

import time
from typing import Any

from exporter.commands.budgets import check_budget
from exporter.commands.division import compressed_by
from exporter.commands.prepare import check_rank, prepare
from exporter.commands.weights import compute_weights
from exporter.graph.fitting import fit_both
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed
from exporter.options.rank import Rank
from exporter.output import staged_output
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.report.results import CompressionReport
from exporter.training.distribution import strategy_for

USES = ("goal", "cut", "scale", "size", "calibration", "seed")
"""The groups and options that ``compress`` uses."""

USES_FOR_ARTIFACTS = ("quantization", "formats", "batch", "opset", "labels", "description")
"""What it uses as well where the budget is one of artifacts."""


def compress_recipe(recipe: Recipe, *, progress: Progress | None = None) -> CompressionReport:
    """Compresses the model of a recipe, and writes it to the recipe's output folder.

    Raises:
        InputError: If the recipe, the model, the data or the output folder cannot be used; nothing
            that was in the folder is changed.
    """
    start, progress = time.perf_counter(), progress or Logged()
    job = prepare(recipe, None, None, None, exports=False, progress=progress)
    with staged_output(
        job.output, job.entries, force=recipe.export.force, progress=progress
    ) as staging:
        weights = compute_weights(job, strategy_for(recipe.tuning.distribute), progress)
        weights.save(staging)
    weights.discard_checkpoints()
    return CompressionReport(
        output=job.output, seconds=time.perf_counter() - start, **weights.figures()
    )


def compress(
    model: Any,
    rank: Rank | None = None,
    *,
    data: Any = None,
    progress: Progress | None = None,
    **choices: Any,
) -> Compressed:
    """Factorizes the layers of a Keras model.

    A kernel K (m x n) becomes two factors, m x r and r x n; the second one keeps bias and
    activation. A layer that the rank would not make smaller, ``rank >= mn / (m + n)``, stays dense.

    Args:
        model: A built Keras model; it is not changed.
        rank: One rank for all layers (20 by default), a part of each layer's parameters,
            ``"none"``, ``"full"``, ``"auto"``, ``"stable"``, ``"vbmf"``, or ranks by layer name.
        data: What ``load_dataset`` returned or takes. Its training part calibrates: the factors
            are then those that change the layers' outputs, and the loss, the least. Labels are not
            used.
        progress: Is told what goes on; by default it is logged.
        choices: Options by name: ``energy`` or a budget in place of a rank, ``channels``,
            ``method``, ``cascade``, ``convolution``, ``fold``, ``merge``, ``scale``, ``size``,
            ``calibration``, ``seed``; with ``target``, ``max_size``, ``max_latency`` or
            ``max_instructions`` also those of the artifacts, such as ``formats`` and
            ``quantize``. Others are refused.

    Returns:
        The compressed model with its plan.

    Raises:
        ModelError: If the model's graph cannot be rewritten, or a weight is not finite.
        DataError: If the data do not fit the model.
        RecipeError: If a choice is none, or does not fit the model.
    """
    of_artifacts = {"max_size", "max_latency", "max_instructions", "target"} & set(choices)
    uses = (*USES, *(USES_FOR_ARTIFACTS if of_artifacts else ()))
    recipe = Recipe.for_verb("compress", uses, {"rank": rank, **choices})
    network = Network.of(model)
    check_rank(network, recipe.goal, recipe.cut)
    network, data = fit_both(network, data, recipe.source)
    check_budget(recipe, data)
    _, compressed = compressed_by(recipe, network, data, progress)
    return compressed
