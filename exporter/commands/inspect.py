"""What there is to gain in a model, before anything is cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.commands.prepare import engine_for, load
from exporter.errors import RecipeError
from exporter.graph.fitting import fit_both
from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.automatic import EnergyRank, FractionRank, StableRank, VbmfRank
from exporter.lowrank.ranks.costs import PARAMS
from exporter.lowrank.ranks.policy import FixedRank, RankPolicy
from exporter.output import CACHE
from exporter.progress import Logged, Progress
from exporter.recipe import Recipe
from exporter.report.results import (
    ENERGIES,
    SPECTRUM_POINTS,
    Inspection,
    KernelInspection,
    PolicyPreview,
)
from exporter.training.reference import train_reference

BUDGET_PARTS = (4, 10)
"""Parameter budgets that are tried: one over these of the model's parameters."""

USES = ("cut", "scale", "size", "calibration", "seed")
"""The groups and options that ``inspect`` uses."""


def inspect(
    model: Any, *, data: Any = None, progress: Progress | None = None, **choices: Any
) -> Inspection:
    """Shows what there is to gain in a Keras model.

    Args:
        model: A built Keras model.
        data: What ``load_dataset`` returned or takes: spectra are then those of the layers'
            outputs.
        progress: Is told what goes on; by default it is logged.
        choices: Fields of ``Recipe`` that say how kernels are cut: ``method``, ``calibration``,
            ``convolution``, ``fold``, ``scale``, ``size``, ``seed``.

    Raises:
        ModelError: If the model's graph cannot be rewritten, or a weight is not finite.
        DataError: If the data do not fit the model.
        RecipeError: If a choice is none.
    """
    recipe = Recipe.for_verb("inspect", USES, choices)
    network, dataset = fit_both(Network.of(model), data, recipe.source)
    return _inspect(engine_for(recipe, network, dataset, progress), progress)


def _inspect(engine: Engine, progress: Progress | None) -> Inspection:
    planner = Planner(engine, progress)
    kernels = []
    for candidate in engine.candidates:
        kernel = candidate.kernel
        curve = None if kernel is None else engine.curves[candidate.name]
        kernels.append(
            KernelInspection(
                name=candidate.name,
                kind=candidate.kind,
                shape=None if kernel is None else (kernel.m, kernel.n),
                params=candidate.params(),
                macs=candidate.macs(),
                break_even_rank=None if kernel is None else kernel.break_even_rank,
                effective_ranks=None if curve is None else effective_ranks(curve),
                spectrum=None if curve is None else _spectrum(curve),
                reason=candidate.note,
            )
        )
    return Inspection(
        model_name=engine.network.name,
        data_aware=bool(engine.moments),
        params=engine.network.params,
        macs=planner.whole(planner.macs),
        kernels=tuple(kernels),
        policies=tuple(_previews(engine, planner)),
    )


def effective_ranks(curve: Floats, energies: Sequence[float] = ENERGIES) -> tuple[int, ...]:
    """Returns the smallest rank that keeps each part, 0 to 1, of a kernel's energy.

    ``curve`` has the squared error at every rank from 0.
    """
    total = curve[0] or 1.0
    kept = 1 - curve / total
    # It rises, and argmax returns the first True; the slack is for rounding.
    return tuple(max(1, int(np.argmax(kept >= part - 1e-12))) for part in energies)


def _spectrum(curve: Floats) -> tuple[float, ...]:
    values = np.sqrt(np.maximum(-np.diff(curve), 0.0))
    picks = np.linspace(0, len(values) - 1, SPECTRUM_POINTS).round().astype(int)
    largest = float(values.max()) or 1.0
    return tuple(float(value) for value in values[picks] / largest)


def _previews(engine: Engine, planner: Planner) -> list[PolicyPreview]:
    policies: dict[str, RankPolicy] = {
        "--rank 20": FixedRank(20),
        "--rank 0.25": FractionRank(0.25),
        "--rank stable": StableRank(),
        "--rank vbmf": VbmfRank(),
        "--energy 0.9": EnergyRank(0.9),
        "--energy 0.99": EnergyRank(0.99),
    }
    for part in BUDGET_PARTS:
        limit = engine.network.params // part
        policies[f"--max-params {limit}"] = planner.policy(PARAMS, limit)
    previews = []
    for option, policy in policies.items():
        try:
            plan = engine.plan(policy)
            params = sum(layer.params_after for layer in plan.layers)
            previews.append(PolicyPreview(option, params, plan.ranks))
        except RecipeError as error:
            previews.append(PolicyPreview(option, None, {}, str(error)))
    return previews


def inspect_recipe(recipe: Recipe, *, progress: Progress | None = None) -> Inspection:
    """Inspects the model of a recipe, without exporting; its ranks do not matter.

    Raises:
        InputError: If the model or the data cannot be used, or channels are to be removed.
    """
    if recipe.cut.channels is not None:
        raise RecipeError(
            "inspect shows the network with all its channels. Received: channels "
            f"{recipe.cut.channels!r}. What is left without some is told by run with --dry-run."
        )
    progress = progress or Logged()
    network, dataset, _ = load(recipe, None, None)
    for note in dataset.notes:
        progress.note(note)
    if recipe.source.model is None:
        model, _ = train_reference(
            network.model, dataset, seed=recipe.source.seed, cache=CACHE, progress=progress
        )
        network = Network(model)
    return _inspect(engine_for(recipe, network, dataset, progress), progress)
