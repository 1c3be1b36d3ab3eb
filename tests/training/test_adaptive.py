"""Ranks that are chosen anew by short trainings, for as many parameters."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import DataError
from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.lowrank.ranks.policy import FixedRank
from exporter.options.groups import Cut
from exporter.progress import Silent
from exporter.training.adaptive import AdaptivePolicy, Trials, budget_of, tried_out
from exporter.training.loop import Loop


@pytest.fixture
def engine(classifier):
    return Engine(Network(classifier), None, Cut(method="svd"))


@pytest.fixture
def by_losses(engine):
    """Chooses ranks where the loss of each trial is known: ``loss(ranks)``."""

    def choose(loss, rank=4, unit="params", file=None):
        plan = engine.plan(FixedRank(rank))
        trials = Trials(
            engine,
            plan,
            unit,
            lambda compressed: loss(compressed.plan.ranks),
            strategy=tf.distribute.get_strategy(),
            progress=Silent(),
            file=file,
        )
        return plan, *trials.run()

    return choose


def law(weights):
    """Returns a loss of ``weight / rank ** 2`` for each kernel that is not whole."""
    return lambda ranks: 1 + sum(w / ranks[n] ** 2 for n, w in weights.items() if n in ranks)


def total(plan, unit):
    return sum(getattr(layer, f"{unit}_after") or 0 for layer in plan.layers)


def weights_of(model):
    return [weight.numpy() for weight in model.weights]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tries_each_kernel_at_two_ranks_and_at_one_where_there_are_no_two(engine):
    assert tried_out(engine.plan(FixedRank(4))) == [
        ("hidden", 2), ("hidden", 4), ("second", 2), ("second", 4),
    ]  # fmt: skip
    assert tried_out(engine.plan(FixedRank(1)))[:2] == [("hidden", 1), ("second", 1)]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("dear", ["hidden", "second"])
def test_kernel_that_training_cannot_do_without_gets_the_rank_of_the_other(dear, unit, by_losses):
    cheap = "second" if dear == "hidden" else "hidden"
    plan, adapted, adaptation = by_losses(law({dear: 1.0, cheap: 0.01}), unit=unit)
    assert adaptation.taken
    assert adapted.ranks[cheap] < 4
    assert adapted.ranks.get(dear, np.inf) > 4
    # Of the same budget, and of nothing that was not cut before.
    assert total(adapted, unit) <= total(plan, unit)
    assert adaptation.limit == budget_of(plan, unit)
    assert "classes" not in adapted.ranks
    reasons = {layer.name: layer.reason for layer in adapted.layers}
    assert reasons[cheap] == f"adaptive: rank {adapted.ranks[cheap]} in the place of rank 4"
    assert reasons["classes"] == "rank 4 reaches break-even 2.7"
    assert adaptation.planned == {"hidden": 4, "second": 4}
    assert adaptation.adapted == {n: adapted.ranks.get(n) for n in ("hidden", "second")}


def test_law_of_each_kernel_is_met_by_two_trials(by_losses, engine):
    weights = {"hidden": 0.3, "second": 0.1}
    plan, _, adaptation = by_losses(law(weights))
    # Three times the planned rank: more than the break-even of the first one, which is whole.
    assert adaptation.wider_loss == pytest.approx(1 + 0.1 / 12**2)
    policy = AdaptivePolicy(plan, "params", adaptation.wider_loss, adaptation.trials)
    chosen = engine.plan(policy)
    limit = budget_of(plan, "params")

    def params(ranks):
        return (
            sum(
                candidate.params(rank)
                for candidate, rank in zip(engine.candidates, (*ranks, None), strict=True)
            )
            - engine.candidates[-1].params()
        )

    def loss(ranks):
        return sum(w / r**2 for w, r in zip(weights.values(), ranks, strict=True))

    pairs = itertools.product(range(2, 9), range(2, 14))
    best = min((pair for pair in pairs if params(pair) <= limit), key=loss)
    assert tuple(chosen.ranks.values()) == pytest.approx(best, abs=1)


def test_planned_ranks_are_kept_where_others_are_no_better(by_losses):
    # Trials that say the one thing, and an end that says the other.
    losses = iter([1.0, 9.0, 5.0, 1.0, 1.0, 2.0, 2.5])
    plan, chosen, adaptation = by_losses(lambda ranks: next(losses))
    assert not adaptation.taken
    assert adaptation.adapted != adaptation.planned
    assert chosen is plan


def test_trials_that_diverge_count_as_bad_ones(by_losses):
    losses = iter([1.0, np.nan, np.inf, 1.1, 1.0, 2.0, 1.5])
    _, chosen, _ = by_losses(lambda ranks: next(losses))
    assert chosen.ranks.get("hidden", np.inf) > 4


def test_what_was_tried_is_not_tried_again(by_losses, tmp_path):
    file, tried = tmp_path / "trials.npz", []
    loss = law({"hidden": 1.0, "second": 0.01})

    def killed(ranks):
        if len(tried) == 3:
            raise KeyboardInterrupt
        return counted(ranks)

    def counted(ranks):
        tried.append(ranks)
        return loss(ranks)

    with pytest.raises(KeyboardInterrupt):
        by_losses(killed, file=file)
    resumed = by_losses(counted, file=file)
    assert len(tried) == 7
    assert resumed == by_losses(counted, file=file) == by_losses(loss)
    assert len(tried) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("untraced")
def test_model_of_new_ranks_is_trained(tuner, classifier):
    options = {"learning_rate": 0.01, "finetune": 6, "batch_size": 64}
    made, compressed = tuner(classifier, {"hidden": 1, "second": 2}, train="adaptive", **options)
    before = compressed.model.count_params()
    tuned = made.run(compressed)
    (history,) = tuned.histories
    assert history.phase == "factored"
    assert len(history.epochs) == 7
    model, plan = tuned.compressed.model, tuned.compressed.plan
    assert model.count_params() <= before
    assert model.count_params() == sum(layer.params_after for layer in plan.layers)
    for name, rank in plan.ranks.items():
        first, second = tuned.compressed.factors[name].weights
        assert first.shape[-1] == second.shape[0] == rank
    adaptation = tuned.adaptation
    chosen = adaptation.adapted if adaptation.taken else adaptation.planned
    assert plan.ranks == {name: rank for name, rank in chosen.items() if rank is not None}
    assert [(t.kernel, t.rank) for t in adaptation.trials] == tried_out(compressed.plan)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_steps")
def test_short_trainings_are_together_as_long_as_the_training(tuner, classifier, monkeypatch):
    take, steps = Loop._take_step, itertools.count()
    monkeypatch.setattr(Loop, "_take_step", lambda s, b: (next(steps), take(s, b))[1])
    made, compressed = tuner(classifier, train="adaptive", finetune=3, batch_size=8)
    (history,) = made.run(compressed).histories
    tried = next(steps) - history.steps
    assert tried <= history.steps
    assert tried >= 0.7 * history.steps


@pytest.mark.usefixtures("cheap_steps")
def test_ctrl_c_during_trials_goes_on_with_the_ranks_of_the_cut(
    tuner, classifier, listener, monkeypatch
):
    made, compressed = tuner(classifier, train="adaptive", finetune=12)
    before, plan = weights_of(compressed.model), compressed.plan
    take, steps = Loop._take_step, itertools.count(1)

    def interrupted(loop, batch):
        if next(steps) == 9:
            raise KeyboardInterrupt
        return take(loop, batch)

    monkeypatch.setattr(Loop, "_take_step", interrupted)
    tuned = made.run(compressed)
    assert tuned.interrupted
    assert tuned.adaptation is None
    assert tuned.compressed.plan is plan
    assert_same(before, weights_of(tuned.compressed.model))
    assert any("Interrupted while ranks were tried out" in note for note in listener.notes)


def test_needs_validation_data(tuner, classifier, blobs):
    data = {f"x_{part}": blobs["x"][:4] for part in ("train", "test")}
    data |= {f"y_{part}": blobs["y"][:4] for part in ("train", "test")}
    with pytest.raises(DataError, match="Adaptive training compares ranks on validation data"):
        tuner(classifier, data=data, train="adaptive")


def test_model_of_which_nothing_is_cut_is_trained_as_it_is(tuner, classifier):
    made, compressed = tuner(classifier, rank={"second": 20}, train="adaptive", finetune=1)
    assert not compressed.factors
    tuned = made.run(compressed)
    assert tuned.adaptation is None
    assert len(tuned.histories) == 1
