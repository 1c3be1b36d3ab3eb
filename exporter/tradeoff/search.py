"""Searches for budgets and variants that are worth a trial, by Optuna."""

import math
from collections.abc import Sequence
from typing import Any

from exporter.formats.extras import Extra
from exporter.tradeoff.front import Point

OPTUNA = Extra("search", ("optuna",))

_LEAST, _MOST = 0.01, 0.95
"""Parts of the parameters between which budgets are searched for.

Layers share a budget by what each loses; the same part for all would ruin the small ones.
"""


class Search:
    """Proposes budgets, and one artifact for each, by the tree-structured Parzen estimator.

    It minimizes the loss and the logarithm of the size at once (Ozaki et al., "Multiobjective
    Tree-Structured Parzen Estimator", 2022). The proposals follow from the seed and the results.
    """

    def __init__(self, artifacts: Sequence[tuple[str, str]], seed: int) -> None:
        """Begins a search over formats and variants.

        Raises:
            RecipeError: If the extra is not installed.
        """
        OPTUNA.require("--search")
        import optuna

        optuna.logging.disable_default_handler()
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._artifacts = list(artifacts)

    def ask(self) -> tuple[Any, float, tuple[str, str]]:
        """Returns a proposal: what ``tell`` takes, a part of the parameters, format and variant."""
        asked = self._study.ask()
        part = round(asked.suggest_float("max_params", _LEAST, _MOST, log=True), 3)
        number = asked.suggest_categorical("artifact", list(range(len(self._artifacts))))
        return asked, part, self._artifacts[number]

    def tell(self, asked: Any, points: Sequence[Point]) -> None:
        """Takes what came of a proposal; no point means that it failed."""
        if not points:
            self._study.tell(asked, state=self._failed)
            return
        point = points[0]
        self._study.tell(asked, (min(point.loss, 1e6), math.log(point.size)))
