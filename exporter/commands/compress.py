"""``compress``: a model and a rank go in, a compressed model comes out."""

from typing import Any

from exporter.commands.budgets import check_budget
from exporter.commands.search import compress_within
from exporter.data import Dataset
from exporter.graph.fitting import fitted
from exporter.graph.walk import check_rewritable
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.candidates import candidates
from exporter.lowrank.engine import Compressed, Engine
from exporter.lowrank.ranks.named import policy_for
from exporter.lowrank.ranks.rank import Rank
from exporter.progress import Progress
from exporter.recipe.cutting import options_for
from exporter.recipe.recipe import Recipe


def check_rank(model: Any, recipe: Recipe) -> None:
    """Finds out, without computing, whether a recipe's rank fits a model.

    Raises:
        ModelError: If the model's graph cannot be rewritten.
        RecipeError: If the rank does not fit the model.
    """
    check_rewritable(model)
    policy = policy_for(recipe)
    if policy is not None:
        policy.check(candidates(model, convolution=recipe.convolution))


def compress(
    model: Any,
    rank: Rank | None = None,
    *,
    data: Dataset | None = None,
    progress: Progress | None = None,
    **choices: Any,
) -> Compressed:
    """Factorizes the layers of a Keras model.

    A kernel K (m x n) becomes two factors, m x r and r x n; the second one keeps bias and
    activation. A layer that the rank would not make smaller, ``rank >= mn / (m + n)``, stays dense.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        rank: One rank for all layers (20 by default), a part of each layer's parameters,
            ``"full"``, ``"auto"``, ``"stable"``, ``"vbmf"``, or ranks by layer name.
        data: What ``load_dataset`` returned. Its training part calibrates: the factors are then
            those that change the layers' outputs, and the loss, the least. Labels are not used.
        progress: Is told what goes on; silent by default.
        choices: Other fields of ``Recipe``: ``energy`` or a budget in place of a rank (with
            ``formats``, if it is one of artifacts), ``method``, ``cascade``, ``calibration``,
            ``convolution``, ``fold``, ``merge``, ``seed``.

    Returns:
        The compressed model with its plan.

    Raises:
        ModelError: If the model's graph cannot be rewritten, or a weight is not finite.
        DataError: If the data do not fit the model.
        RecipeError: If a choice is none, or does not fit the model.
    """
    recipe = Recipe(rank=rank, **choices)
    check_rank(model, recipe)
    fitted_data = None if data is None else fitted(data, model)
    check_budget(recipe, fitted_data)
    calibration = None
    if fitted_data is not None:
        calibration = calibration_from(model, fitted_data, recipe.calibration)
    engine = Engine(model, calibration, options_for(recipe), progress)
    return carry_out(engine, recipe, fitted_data, progress)


def carry_out(
    engine: Engine, recipe: Recipe, dataset: Dataset | None, progress: Progress | None = None
) -> Compressed:
    """Factorizes by a recipe: by its rank, or within its budget.

    Args:
        engine: Of the model, with the recipe's options.
        recipe: Says which ranks.
        dataset: Fitted to the model.
        progress: Is told what goes on.

    Raises:
        RecipeError: If the rank does not fit the model, or the budget cannot be reached.
        ConversionError: If the budget is one of artifacts, and the model does not convert.
    """
    policy = policy_for(recipe)
    if policy is None:
        return compress_within(engine, recipe, dataset, progress)
    return engine.factorize(engine.plan(policy))
