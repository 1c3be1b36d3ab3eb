import json
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.alone import alone, fingerprint
from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.costs import PARAMS, CheaperCosts, most_useful
from exporter.options.groups import Cut
from exporter.progress import Silent
from exporter.targets import TARGETS, Target
from exporter.targets.base import Cost
from exporter.targets.layers import (
    TILE,
    LayerMeasurement,
    measured_ranks,
    read_costs,
    write_costs,
)


class FileSize(Target):
    """Costs of an artifact are its bytes: a target whose figures are known beforehand."""

    unit = "bytes"

    def __init__(self):
        super().__init__("file")
        self.measured = 0

    def measure(self, fmt, subjects, inputs, *, detailed=True):
        self.measured += len(subjects)
        return [Cost(fmt.size(subject.path)) for subject in subjects]

    def text(self, cost):
        return f"{cost.value} bytes"


@pytest.fixture
def engine():
    """Two layers of one shape, a small one, and one that stands alone in its shape."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, activation="relu", name="first"),
            layers.Dense(64, activation="relu", name="second"),
            layers.Dense(4, name="small"),
        ]
    )
    return Engine(Network(model), None, Cut(method="svd"))


def measurement(engine, target, cache=None):
    fmt = FORMATS["tflite"]
    return LayerMeasurement(target, fmt, ExportOptions(), engine, cache, Silent())


def by_name(engine):
    return {candidate.name: candidate for candidate in engine.candidates}


@given(m=st.integers(1, 20_000), n=st.integers(1, 20_000))
def test_measured_ranks_are_few_and_reach_from_end_to_end(m, n):
    layer = SimpleNamespace(count_params=lambda: m * n)
    kernel = Kernel(m=m, n=n, layer=layer, variable=None, read=None, outputs=None, positions=1)
    ranks, limit = measured_ranks(kernel), most_useful(kernel)
    assert ranks == sorted(set(ranks))
    assert all(1 <= rank < limit for rank in ranks)
    assert len(ranks) <= 40
    assert (ranks[:1] == [1]) == (limit > 1)
    if limit > 2 * TILE:
        assert limit - ranks[-1] <= TILE
        assert all(rank % TILE == 0 for rank in ranks if rank > TILE)


def test_each_shape_is_measured_once_and_kept(engine, tmp_path):
    target, cache = FileSize(), tmp_path / "deep" / "costs.json"
    costs = measurement(engine, target, cache).costs(Cost(1_000_000))
    first, second, small = (by_name(engine)[name] for name in ("first", "second", "small"))
    ranks = measured_ranks(first.kernel)
    assert target.measured == len(ranks) + 1 + len(measured_ranks(small.kernel)) + 1
    assert costs.of(first, None) == costs.of(second, None)
    assert costs.whole(engine.candidates) == 1_000_000
    # Weights take four bytes each; the rest of a file is much the same.
    saved = costs.of(first, None) - costs.of(first, 8)
    assert saved == pytest.approx(4 * (64 * 64 - 2 * 8 * 64), abs=1500)
    again = FileSize()
    assert measurement(engine, again, cache).costs(Cost(1_000_000)).tables == costs.tables
    assert again.measured == 0


def test_costs_between_two_measured_ranks_lie_between_theirs(engine):
    costs = measurement(engine, FileSize()).costs(Cost(1_000_000))
    first = by_name(engine)["first"]
    table = costs.tables["first"]
    assert set(costs.ranks(first)) >= {rank for rank in table if rank is not None}
    for rank in costs.ranks(first):
        assert costs.of(first, 1) <= costs.of(first, rank) <= costs.of(first, None)


def test_only_ranks_that_cost_less_are_listed(engine):
    costs = measurement(engine, FileSize()).costs(Cost(1_000_000))
    cheaper = CheaperCosts(PARAMS, costs)
    first, small = (by_name(engine)[name] for name in ("first", "small"))
    assert cheaper.of(first, 4) == first.params(4)
    assert cheaper.ranks(first) == costs.ranks(first)
    # Nothing of the tables above: rank 2 of a small layer costs more than the layer.
    tables = {**costs.tables, "small": {None: 100, 1: 90, 2: 110}}
    assert CheaperCosts(PARAMS, replace(costs, tables=tables)).ranks(small) == (1,)


def test_layers_that_cannot_stand_alone_cost_as_their_macs_say():
    layers = keras.layers
    query, value = keras.Input((6, 32), name="query"), keras.Input((5, 32), name="value")
    outputs = layers.MultiHeadAttention(4, 8, name="attention")(query, value)
    engine = Engine(Network(keras.Model([query, value], outputs)), None, Cut(method="svd"))
    target = FileSize()
    costs = measurement(engine, target).costs(Cost(1000.0))
    assert target.measured == 0
    assert not costs.tables
    candidate = next(c for c in engine.candidates if c.kernel is not None)
    part = candidate.macs(2) / engine.network.macs
    assert costs.of(candidate, 2) == pytest.approx(1000 * part, abs=1)


def test_kernels_of_one_layer_share_its_cost():
    inputs = keras.Input((6, 32))
    outputs = keras.layers.MultiHeadAttention(4, 8, name="attention")(inputs, inputs)
    engine = Engine(Network(keras.Model(inputs, outputs)), None, Cut(method="svd"))
    target = FileSize()
    costs = measurement(engine, target).costs(Cost(100_000))
    assert set(costs.tables) == {
        f"attention/{name}" for name in ("query", "key", "value", "output")
    }
    wholes = [table[None] for table in costs.tables.values()]
    assert 4 * 4 * 32 * 32 < sum(wholes) < 4 * 4 * 32 * 32 + 20_000
    for table in costs.tables.values():
        assert table[None] - table[8] == pytest.approx(4 * 32 * (32 - 2 * 8), abs=1500)


def test_time_is_counted_in_whole_steps(engine):
    costs = measurement(engine, TARGETS["here"]).costs(Cost(1e-4), {"first": [1, 8]})
    assert set(costs.tables) == {"first"}
    assert all(0 < value < 10**9 for value in costs.tables["first"].values())
    assert costs.total == 100_000


def test_names_and_values_do_not_make_a_layer_another_one(engine):
    first, second, small = (
        fingerprint(alone(layer, engine.network.calls[layer]))
        for layer in engine.network.model.layers
    )
    assert first == second != small


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "text"}', "\x00"])
def test_damaged_costs_are_measured_anew(content, tmp_path):
    file = tmp_path / "costs.json"
    file.write_text(content)
    assert read_costs(file) == {}
    write_costs({"key": 1.5, "unknown": np.nan}, file)
    assert json.loads(file.read_text()) == {"key": 1.5}
    write_costs({"other": 2.0}, file)
    assert read_costs(file) == {"key": 1.5, "other": 2.0}
    assert list(tmp_path.iterdir()) == [file]
