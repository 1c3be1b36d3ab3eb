"""Epochs, the best weights, and going on from a checkpoint to the very same weights."""

import itertools
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import DataError
from exporter.options.groups import Tuning
from exporter.training import loop as loop_module
from exporter.training.data import Score, TrainingData
from exporter.training.loop import Loop


class Killed(BaseException):
    """Stands for what no program can catch."""


def weights_of(model):
    return [weight.numpy() for weight in model.weights]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@contextmanager
def at_step(step, happening):
    """Has something happen after a step, counted over all phases, while the block runs."""
    take, count = Loop._take_step, itertools.count(1)

    def taking(self, batch):
        loss = take(self, batch)
        if next(count) == step:
            happening()
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_take_step", taking)
        yield


def kill():
    raise Killed


@pytest.fixture
def saved_often(monkeypatch):
    """A checkpoint after every step, not at the end of an epoch alone."""
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", -1.0)


def test_learns_and_tells_of_every_epoch(tuner, classifier, listener):
    made, compressed = tuner(classifier, whole=False, learning_rate=0.01, finetune=6)
    tuned = made.run(compressed)
    (history,) = tuned.histories
    assert history.phase == "factored"
    assert history.ending == "finished"
    assert [epoch.number for epoch in history.epochs] == list(range(7))
    assert history.epochs[0].loss is None
    assert history.epochs[-1].loss < history.epochs[1].loss
    # Of 19 samples, one is more than half a standard error at such accuracies.
    assert history.epochs[history.best].accuracy == max(e.accuracy for e in history.epochs)
    # 240 samples: a fifth for the test, a tenth of the rest for validation, batches of 32.
    assert history.steps == 6 * math.ceil(173 / 32)
    assert [step for step, _ in listener.steps] == list(range(1, history.steps + 1))
    assert "epoch 1/6, loss " in listener.steps[0][1]
    assert "validation accuracy " in listener.steps[0][1]
    notes = [note for note in listener.notes if note.startswith("Epoch ")]
    assert len(notes) == 6
    assert notes[0].startswith("Epoch 1 of 6: loss ")


def test_learning_rate_rises_and_then_falls_like_a_cosine(tuner, classifier):
    made, compressed = tuner(classifier, learning_rate=0.01, finetune=20)
    (history,) = made.run(compressed).histories
    rates = [epoch.learning_rate for epoch in history.epochs]
    assert rates[0] < 0.005
    assert rates[1] == pytest.approx(0.01, rel=0.01)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4, rel=0.1)


@pytest.fixture
def judged(tuner, classifier, cheap_steps, monkeypatch):
    """Trains where validation says what it is told to, from the start on."""

    def train(accuracies, losses, samples=800, **choices):
        scores = map(Score, losses, accuracies, itertools.repeat(samples))
        close, states = Loop._close_epoch, []

        def closing(self, number, loss):
            close(self, number, loss)
            states.append(weights_of(self._phase.student.model))

        monkeypatch.setattr(TrainingData, "evaluate", lambda *_: next(scores))
        monkeypatch.setattr(Loop, "_close_epoch", closing)
        made, compressed = tuner(classifier, finetune=len(losses) - 1, **choices)
        (history,) = made.run(compressed).histories
        assert_same(states[history.best], weights_of(compressed.model))
        return history

    return train


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        # Half a standard error is 0.39 points at 95 % of 800 samples.
        ((0.9, 0.95, 0.947, 0.945), (0.5, 0.3, 0.3, 0.3), 2),
        ((0.9, 0.95, 0.945, 0.947), (0.5, 0.3, 0.3, 0.3), 3),
        # By small steps downhill, no further than from the best one.
        ((0.9, 0.95, 0.948, 0.946, 0.944), (0.5, 0.3, 0.3, 0.3, 0.3), 2),
        ((0.9, 0.95, 0.95), (0.5, 0.3, 0.4), 2),
        # No better than the start.
        ((0.95, 0.949, 0.948), (0.3, 0.2, 0.1), 0),
        ((0.95, 0.95), (0.3, 0.4), 0),
        ((0.95, 0.95), (0.3, 0.2), 1),
        # Values, of which there is no accuracy.
        ((None, None, None), (1.0, 0.5, 0.5001), 1),
        ((None, None, None), (1.0, 1.5, 0.9), 2),
    ],
)
def test_best_weights_by_validation_are_kept(accuracies, losses, best, judged):
    assert judged(accuracies, losses).best == best


def test_patience_counts_from_the_best_epoch_not_from_the_one_that_is_kept(judged):
    accuracies = (0.9, 0.95, 0.949, 0.948, 0.948, 0.948)
    history = judged(accuracies, (0.5, *[0.3] * 5), patience=3)
    assert history.ending == "no better"
    assert history.epochs[-1].number == history.best == 4


def test_nothing_gets_worse_by_a_rate_that_is_too_high(tuner, classifier, listener):
    made, compressed = tuner(classifier, learning_rate=1e18, finetune=3)
    before = weights_of(compressed.model)
    (history,) = made.run(compressed).histories
    assert history.ending == "diverged"
    assert history.best == 0
    assert_same(before, weights_of(compressed.model))
    assert any("Lower the learning rate, now 1e+18" in note for note in listener.notes)


def test_stops_when_validation_gets_no_better(tuner, classifier):
    made, compressed = tuner(classifier, learning_rate=1e-9, finetune=9, patience=2)
    (history,) = made.run(compressed).histories
    peak = max(history.epochs, key=lambda epoch: (epoch.accuracy, -epoch.validation_loss))
    assert history.ending == "no better"
    assert history.epochs[-1].number == peak.number + 2 < 9


def test_without_validation_data_the_last_epoch_counts(tuner, classifier, blobs, listener):
    data = {f"x_{part}": blobs["x"][:4] for part in ("train", "test")}
    data |= {f"y_{part}": blobs["y"][:4] for part in ("train", "test")}
    made, compressed = tuner(classifier, data=data, finetune=2)
    (history,) = made.run(compressed).histories
    assert history.best == 2
    assert history.epochs[-1].accuracy is None
    assert any("No validation data" in note for note in listener.notes)


def test_what_layers_draw_depends_on_the_seed_alone(tuner, classifier):
    trained = []
    for state in ([1, 0], [2, 5]):  # As of a model that another process has loaded.
        classifier.layers[1].seed_generator.state.assign(state)
        made, compressed = tuner(classifier, finetune=1)
        trained.append(weights_of(made.run(compressed).compressed.model))
    assert_same(*trained)


def test_data_without_a_training_part_are_refused(tuner, classifier, blobs):
    with pytest.raises(DataError, match="Fine-tuning needs a training part"):
        tuner(classifier, data={"x_test": blobs["x"], "y_test": blobs["y"]})


@pytest.fixture
def same_weights_although_killed(tuner, classifier, tmp_path, saved_often):
    """Trains twice, once in one go, and compares; a third time by another seed."""

    def train(steps, **options):
        options |= {"learning_rate": 0.01}
        made, compressed = tuner(classifier, **options)
        whole = made.run(compressed)
        for step in steps:  # Of each process, which goes on from where the one before was killed.
            made, compressed = tuner(classifier, checkpoints=tmp_path, **options)
            with at_step(step, kill), pytest.raises(Killed):
                made.run(compressed)
        made, compressed = tuner(classifier, checkpoints=tmp_path, **options)
        resumed = made.run(compressed)
        assert_same(weights_of(whole.compressed.model), weights_of(resumed.compressed.model))
        for one, other in zip(whole.histories, resumed.histories, strict=True):
            assert one.best == other.best
            assert [e.loss for e in one.epochs] == [e.loss for e in other.epochs]
            assert [e.accuracy for e in one.epochs] == [e.accuracy for e in other.epochs]

        made, compressed = tuner(classifier, seed=1, **options)
        other = weights_of(made.run(compressed).compressed.model)
        pairs = zip(weights_of(whole.compressed.model), other, strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs)

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "steps", "whole"),
    [
        # In the second epoch, and after the last batch of all, which is smaller.
        ("factored", (9, 10), False),
        # At the end of an epoch, in the last epoch, and in the second phase.
        ("projected+factored", (6, 12, 4), True),
    ],
)
def test_same_seed_same_weights_even_if_it_was_killed(
    train, steps, whole, same_weights_although_killed
):
    same_weights_although_killed(steps, train=train, whole=whole)


@pytest.mark.slow
@pytest.mark.usefixtures("untraced")
def test_same_seed_same_ranks_even_if_trials_were_killed(same_weights_although_killed):
    # Six trials of a step each, and a training of three.
    ranks = {"hidden": 1, "second": 2}
    same_weights_although_killed((4, 5), train="adaptive", rank=ranks, finetune=1, batch_size=64)


@pytest.mark.usefixtures("saved_often")
def test_goes_on_in_the_middle_of_an_epoch(tuner, classifier, tmp_path, listener):
    made, compressed = tuner(classifier, checkpoints=tmp_path)
    with at_step(9, kill), pytest.raises(Killed):
        made.run(compressed)
    listener.steps.clear()
    made, compressed = tuner(classifier, checkpoints=tmp_path)
    made.run(compressed)
    # The ninth step was not saved.
    assert listener.steps[0][0] == 9
    assert any("Goes on from the checkpoint in epoch 2, step 2" in n for n in listener.notes)


def test_ctrl_c_goes_on_with_the_best_so_far(tuner, classifier, listener):
    made, compressed = tuner(classifier, learning_rate=0.01, finetune=5)

    def interrupt():
        raise KeyboardInterrupt

    with at_step(15, interrupt):  # In the third epoch.
        tuned = made.run(compressed)
    (history,) = tuned.histories
    assert history.ending == "interrupted"
    assert tuned.interrupted
    assert len(history.epochs) == 3
    assert any("Interrupted in epoch 3: goes on with the best" in note for note in listener.notes)


@pytest.mark.usefixtures("saved_often")
@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "damage",
    [
        {"progress": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"progress": np.frombuffer(b'{"epoch": "2"}', np.uint8)},
        {"state-0": np.zeros(7, np.float32)},
        {"optimizer-1": np.full((), np.nan)},
    ],
)
def test_training_starts_anew_from_a_damaged_checkpoint(
    tuner, classifier, tmp_path, listener, damage
):
    made, compressed = tuner(classifier, checkpoints=tmp_path)
    with at_step(9, kill), pytest.raises(Killed):
        made.run(compressed)
    file = tmp_path / "factored.npz"
    with np.load(file) as loaded:
        arrays = {**loaded, **damage}
    np.savez(file, **arrays)
    listener.steps.clear()
    made, compressed = tuner(classifier, checkpoints=tmp_path)
    made.run(compressed)
    assert listener.steps[0][0] == 1
    assert any("factored.npz is damaged, training starts anew" in note for note in listener.notes)


def test_model_of_a_fixed_batch_size_is_trained_in_whole_batches(tuner, blobs):
    import keras

    model = keras.Sequential(
        [
            keras.Input(batch_shape=(16, 12), name="features"),
            keras.layers.Dense(20, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="classes"),
        ]
    )
    made, compressed = tuner(model, whole=False, finetune=2)
    (history,) = made.run(compressed).histories
    assert history.steps == 2 * (173 // 16)
    assert history.epochs[-1].accuracy is not None


@pytest.mark.slow
def test_trains_on_a_pipeline_as_on_its_arrays(tuner, classifier, blobs):
    pair = (blobs["x"], blobs["y"])
    parts = {
        "train": tf.data.Dataset.from_tensor_slices(tuple(a[:200] for a in pair)),
        "validation": tf.data.Dataset.from_tensor_slices(tuple(a[200:] for a in pair)),
        "test": tf.data.Dataset.from_tensor_slices(tuple(a[200:] for a in pair)),
    }
    made, compressed = tuner(classifier, data=parts, learning_rate=0.01, finetune=5)
    (history,) = made.run(compressed).histories
    assert history.steps == 5 * math.ceil(200 / 32)
    assert history.epochs[-1].loss < history.epochs[1].loss


@pytest.mark.slow
def test_length_of_a_pipeline_need_not_be_known(tuner, classifier, blobs, monkeypatch):
    # It is known of a pipeline that ends within what is read of it.
    monkeypatch.setattr("exporter.data.loading.HELD_SAMPLES", 100)
    pairs = tf.data.Dataset.from_tensor_slices((blobs["x"], blobs["y"]))
    parts = {"train": pairs.filter(lambda x, y: True), "validation": pairs, "test": pairs}
    made, compressed = tuner(classifier, data=parts, learning_rate=0.01, finetune=2)
    (history,) = made.run(compressed).histories
    assert history.steps == 2 * math.ceil(240 / 32)
    # Without a length there is nothing to decay over.
    assert all(epoch.learning_rate == pytest.approx(0.01) for epoch in history.epochs)


def test_a_baseline_that_is_worse_does_not_teach(tuner, classifier):
    """The baseline has random weights: whoever follows it to the end learns no labels."""

    def accuracy(distill):
        made, compressed = tuner(classifier, learning_rate=0.02, finetune=4, distill=distill)
        (history,) = made.run(compressed).histories
        return history.epochs[-1].accuracy

    alone, taught, followed = map(accuracy, (0.0, 0.9, 1.0))
    assert taught > alone - 0.1
    assert followed < alone - 0.1


@pytest.mark.parametrize(
    ("baseline", "scores", "caught_up"),
    [
        (Score(1.0, 0.8, 100), [Score(0.5, accuracy, 100) for accuracy in (0.2, 0.79, 0.8)], 2),
        (Score(1.0, 0.8, 100), [Score(2.0, 0.8, 100)], 0),
        (Score(1.0, None, 100), [Score(loss, None, 100) for loss in (3.0, 0.9)], 1),
        (Score(None, None, 0), [Score(None, None, 0)] * 8, 4),
    ],
)
def test_the_baseline_teaches_until_the_model_is_as_good(baseline, scores, caught_up):
    loop = Loop.__new__(Loop)
    loop._tuning = Tuning(finetune=8, distill=0.3)
    loop._data = SimpleNamespace(baseline=baseline)
    loop._objective = SimpleNamespace(distill=0.3)
    found = [loop._has_caught_up(number, score) for number, score in enumerate(scores)]
    assert found.index(True) == caught_up
