import numpy as np
import pytest

import exporter
from exporter.commands.budgets import accuracy_drop
from exporter.commands.division import DIVISIONS
from exporter.errors import DataError, RecipeError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner


def divergence(model, compressed, digits):
    network = Network(model)
    dataset = fitted(digits, network)
    return Planner(Engine(network, calibration_from(network, dataset, 2000))).loss(compressed)


@pytest.mark.parametrize("limit", [0.5, 0.2])
def test_a_division_is_no_worse_than_ranks_alone(trained_mlp, digits, limit):
    auto, ranks = (
        exporter.compress(trained_mlp, max_params=limit, data=digits, **choices)
        for choices in ({"channels": "auto"}, {})
    )
    assert auto.network.params <= limit * Network(trained_mlp).params
    # Divisions are compared on fewer samples than these.
    assert divergence(trained_mlp, auto, digits) <= 1.1 * divergence(trained_mlp, ranks, digits)


def test_within_a_drop_the_smallest_division_is_taken(trained_mlp, digits):
    dataset = fitted(digits, Network(trained_mlp))
    auto, ranks = (
        exporter.compress(trained_mlp, max_drop=0.02, data=digits, **choices)
        for choices in ({"channels": "auto"}, {})
    )
    assert accuracy_drop(Network(trained_mlp), auto.network, dataset) <= 0.02
    assert auto.network.params <= ranks.network.params


def test_progress_ends_and_names_each_division(trained_mlp, digits, listener):
    exporter.compress(trained_mlp, max_params=0.3, channels="auto", data=digits, progress=listener)
    told = [status for _, status in listener.steps if status.startswith("channels")]
    assert told[:2] == ["channels all", "channels 79%"]
    assert (DIVISIONS, "done") in listener.steps


@pytest.mark.parametrize("rank", [20, 0.5, "none", "vbmf"])
def test_only_a_budget_can_be_divided(trained_mlp, rank):
    with pytest.raises(RecipeError, match="channels 'auto' divides a budget"):
        exporter.compress(trained_mlp, rank, channels="auto")


def test_a_division_needs_data(trained_mlp):
    with pytest.raises(DataError, match="compares divisions of the budget on training data"):
        exporter.compress(trained_mlp, max_params=0.5, channels="auto")


def test_a_budget_that_no_division_keeps_is_told(trained_mlp, digits):
    with pytest.raises(
        RecipeError, match=r"No division .* keeps max_params 10.*smallest reachable"
    ):
        exporter.compress(trained_mlp, max_params=10, channels="auto", data=digits)


def test_dividing_tries_ranks_alone_and_channels_alone():
    from exporter.commands.division import _parts
    from exporter.recipe import Recipe

    class Small:
        params, macs = 1000, 5000

    parts = _parts(Recipe(max_params=0.1), Small())
    assert parts[0] is None
    assert len(parts) == DIVISIONS
    np.testing.assert_allclose(parts[-1], 0.1)
    parts = _parts(Recipe(max_size=500, quantize=("int8",)), Small())
    assert any(np.isclose(part, 0.5) for part in parts[1:])
    assert parts[-1] < 0.5
