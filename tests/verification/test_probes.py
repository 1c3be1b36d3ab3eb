"""The inputs that artifacts are compared on."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter.data import Dataset, Split, load_dataset
from exporter.graph.signature import FREE_SIZE, TensorInfo
from exporter.verification.probes import Probe, make_probes, predict, samples_within

FEATURES = TensorInfo("features", (None, 5), "float32")
TOKENS = TensorInfo("tokens", (None, 7), "int32")
SCORES = TensorInfo("scores", (None, 3), "float32")


def dataset(inputs: Mapping[str, Any], labels: Mapping[str, Any] | None = None) -> Dataset:
    """A data set that fits as it is."""
    return Dataset("arrays", None, None, Split(inputs, labels or {}), "digest")


def network(inputs: list[TensorInfo], output: TensorInfo = SCORES, macs: int = 1) -> Any:
    """What probes depend on of a network."""

    def sample_shape(info: TensorInfo) -> tuple[int, ...]:
        return (info.fixed_batch or 1, *(size or FREE_SIZE for size in info.shape[1:]))

    return SimpleNamespace(
        inputs=inputs,
        outputs=[output],
        macs=macs,
        fixed_batch=inputs[0].fixed_batch,
        scales_input=False,
        signature=SimpleNamespace(sample_shape=sample_shape),
    )


def probes_by_name(
    inputs: list[TensorInfo], data: Dataset | None = None, seed: int = 0
) -> dict[str, Probe]:
    probes = make_probes(network(inputs), data or load_dataset("none"), seed)
    return {probe.name: probe for probe in probes}


def features(count: int, low: float = -2.0, high: float = 3.0) -> Any:
    values = np.random.default_rng(0).uniform(low, high, (count, 5)).astype("float32")
    values.flat[0], values.flat[-1] = low, high
    return values


def test_real_data_come_first_and_every_kind_is_there() -> None:
    values, labels = features(100), np.arange(100) % 3
    probes = make_probes(network([FEATURES]), dataset({"features": values}, {"scores": labels}), 0)

    assert [probe.name for probe in probes] == ["test", "random", "single", "edge"]
    np.testing.assert_array_equal(probes[0].inputs["features"], values)
    np.testing.assert_array_equal(probes[0].labels["scores"], labels)


def test_random_inputs_come_first_where_there_are_no_data() -> None:
    probes = make_probes(network([FEATURES]), load_dataset("none"), 0)

    assert [probe.name for probe in probes] == ["random", "single", "edge"]
    assert not any(probe.labels for probe in probes)


def test_random_inputs_fill_the_range_of_the_data() -> None:
    random = probes_by_name([FEATURES], dataset({"features": features(50)}))["random"]
    values = random.inputs["features"]

    assert values.dtype == np.float32
    assert -2 <= values.min() < -1.9
    assert 2.9 < values.max() <= 3


def test_random_inputs_are_within_zero_and_one_where_there_are_no_data() -> None:
    values = probes_by_name([FEATURES])["random"].inputs["features"]

    assert 0 <= values.min() < 0.05
    assert 0.95 < values.max() <= 1


def test_edges_are_zero_and_the_extremes_of_the_data() -> None:
    edge = probes_by_name([FEATURES], dataset({"features": features(50)}))["edge"]

    np.testing.assert_array_equal(
        edge.inputs["features"], np.repeat([[0.0], [-2.0], [3.0]], 5, axis=1)
    )


def test_single_samples_are_the_first_of_the_data_one_at_a_time() -> None:
    values = features(50)
    single = probes_by_name([FEATURES], dataset({"features": values}))["single"]

    assert single.batch_size == 1
    np.testing.assert_array_equal(single.inputs["features"], values[: len(single)])


@pytest.mark.parametrize(("low", "high"), [(3, 9), (0, 1), (5, 5)])
def test_integers_stay_within_the_range_of_the_data(low: int, high: int) -> None:
    tokens = np.random.default_rng(0).integers(low, high, (200, 7), endpoint=True)
    probes = probes_by_name([TOKENS], dataset({"tokens": tokens.astype("int32")}))

    for probe in probes.values():
        values = probe.inputs["tokens"]
        assert values.dtype == np.int32
        assert low <= values.min() <= values.max() <= high
    # Both ends are drawn: the last index of an embedding is one of them.
    assert set(np.unique(probes["random"].inputs["tokens"])) == set(range(low, high + 1))


def test_padding_stays_where_the_data_have_it() -> None:
    tokens = np.random.default_rng(0).integers(1, 9, (60, 7)).astype("int32")
    tokens[:, 5:] = 0
    for probe in probes_by_name([TOKENS], dataset({"tokens": tokens})).values():
        assert (probe.inputs["tokens"][:, :5] > 0).all()
        assert (probe.inputs["tokens"][:, 5:] == 0).all()


def test_integers_are_zero_or_one_where_there_are_no_data() -> None:
    values = probes_by_name([TOKENS])["random"].inputs["tokens"]

    assert set(np.unique(values)) == {0, 1}


def test_inputs_of_several_kinds_have_ranges_of_their_own() -> None:
    tokens = np.full((60, 7), 4, "int32")
    data = dataset({"features": features(60, 10, 20), "tokens": tokens})
    random = probes_by_name([FEATURES, TOKENS], data)["random"]

    assert (random.inputs["tokens"] == 4).all()
    assert random.inputs["features"].min() >= 10


@pytest.mark.parametrize("count", [3, 8, 50])
def test_fixed_batch_gets_whole_batches_with_their_labels(count: int) -> None:
    fixed = TensorInfo("features", (8, 5), "float32")
    values, labels = features(count), np.arange(count)
    data = dataset({"features": values}, {"scores": labels})
    probes = probes_by_name([fixed], data)

    for probe in probes.values():
        assert probe.batch_size == 8
        assert len(probe) % 8 == 0
        assert len(probe) >= 8
    test = probes["test"]
    assert len(test) == max(8, count // 8 * 8)
    # Samples may be repeated or dropped, but each keeps its label.
    np.testing.assert_array_equal(test.inputs["features"], values[test.labels["scores"]])


def test_free_sizes_are_those_of_the_data_or_else_an_agreed_one() -> None:
    sequence = TensorInfo("sequence", (None, None, 4), "float32")
    values = np.random.default_rng(0).normal(size=(20, 9, 4)).astype("float32")
    with_data = probes_by_name([sequence], dataset({"sequence": values}))
    without = probes_by_name([sequence])

    assert {p.inputs["sequence"].shape[1:] for p in with_data.values()} == {(9, 4)}
    assert {p.inputs["sequence"].shape[1:] for p in without.values()} == {(FREE_SIZE, 4)}


def test_seed_decides_the_random_inputs() -> None:
    first, again, other = (
        probes_by_name([FEATURES], seed=seed)["random"].inputs["features"] for seed in (1, 1, 2)
    )

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_large_outputs_limit_the_samples_that_are_kept() -> None:
    data = dataset({"features": features(2000)})
    huge = TensorInfo("image", (None, 1024, 1024, 3), "float32")

    assert len(make_probes(network([FEATURES], huge), data, 0)[0]) < 100
    assert len(make_probes(network([FEATURES]), data, 0)[0]) == 2000


@pytest.mark.parametrize(
    ("limit", "count"), [(None, 100), (1000, 100), (64, 64), (63, 32), (33, 32), (32, 32), (1, 32)]
)
def test_limit_leaves_whole_batches_and_at_least_one(limit: int | None, count: int) -> None:
    probe = Probe("test", {"features": features(100)}, 32)

    assert samples_within(probe, limit) == count


def test_predicts_in_batches_and_joins_them_in_order() -> None:
    sizes = []

    def runner(inputs: Mapping[str, Any]) -> dict[str, Any]:
        sizes.append(len(inputs["features"]))
        return {"sums": inputs["features"].sum(axis=1)}

    values = features(70)
    probe = Probe("test", {"features": values}, 32)

    np.testing.assert_array_equal(predict(runner, probe)["sums"], values.sum(axis=1))
    assert sizes == [32, 32, 6]
    np.testing.assert_array_equal(predict(runner, probe, 40)["sums"], values[:32].sum(axis=1))


@pytest.mark.parametrize(
    ("macs", "batch"), [(10**6, 64), (250 * 10**6, 64), (10**9, 16), (16 * 10**9, 8)]
)
def test_batches_of_costly_models_are_small(macs, batch):
    probes = make_probes(network([FEATURES], macs=macs), load_dataset("none"), 0)
    assert probes[0].batch_size == batch
    assert len(probes[0]) == 128
    # Slow executions see one batch at least.
    assert samples_within(probes[0], 8) == batch
