"""Turns a recipe into the options of the low-rank engine."""

from exporter.lowrank.engine import Options
from exporter.recipe.recipe import Recipe


def options_for(recipe: Recipe) -> Options:
    """Returns how a recipe has kernels cut."""
    return Options(
        method=recipe.method or "kfac",
        cascade=recipe.cascade,
        convolution=recipe.convolution,
        fold=recipe.fold,
        merge=recipe.merge,
        seed=recipe.seed,
    )
