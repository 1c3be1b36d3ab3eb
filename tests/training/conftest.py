from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from exporter.data import load_dataset
from exporter.graph.network import Network
from exporter.lowrank.engine import Engine
from exporter.recipe import Recipe
from exporter.training.finetune import FineTuner
from exporter.training.loop import Loop


def clouds(count):
    """Three classes that a straight line cannot part, each sample of 12 values."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 12)) * 1.5
    kinds = rng.integers(0, 6, count)
    x = (centres[kinds] + rng.normal(size=(count, 12))).astype("float32")
    return {"x": x, "y": kinds % 3}


@pytest.fixture(scope="session")
def blobs():
    """240 samples, 173 of them to train on: the last batch of an epoch is smaller."""
    return clouds(240)


@pytest.fixture
def classifier(randomize):
    """Small enough to train in a moment, with dropout, whose masks must be resumed as well."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12,), name="features"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dropout(0.1, seed=3),
            layers.Dense(24, activation="relu", name="second"),
            layers.Dense(3, activation="softmax", name="classes"),
        ],
        name="small_classifier",
    )
    randomize(model, 0)
    return model


@pytest.fixture
def tuner(blobs, listener):
    """Makes a fine-tuner: ``tuner(model, rank, ...)`` returns it, and what was cut.

    Unless ``whole`` is false, it trains on 192 samples, whole batches: that takes half the time,
    since a step is traced for each size of batch.
    """

    def make(
        model,
        rank=3,
        *,
        data=None,
        whole=True,
        strategy=None,
        checkpoints=None,
        loss=None,
        **choices,
    ):
        from exporter.graph.fitting import fitted
        from exporter.lowrank.ranks.named import policy_for

        recipe = Recipe(rank=rank, **{"finetune": 3, "batch_size": 32, **choices})
        arrays = data or (clouds(266) if whole else blobs)
        unit = "macs" if recipe.goal.kind == "max_macs" else "params"
        dataset = fitted(load_dataset(arrays), Network(model))
        engine = Engine(
            Network(model), None, replace(recipe.cut, method="svd"), seed=recipe.source.seed
        )
        made = FineTuner(
            engine,
            dataset,
            recipe.tuning,
            unit=unit,
            strategy=strategy or tf.distribute.get_strategy(),
            progress=listener,
            loss=loss,
            checkpoints=checkpoints,
        )
        return made, engine.factorize(engine.plan(policy_for(recipe.goal)))

    return make


@pytest.fixture
def untraced(monkeypatch):
    """Takes each step eagerly: to trace it takes longer than the few steps of each trial."""

    traced = tf.function

    def function(body, **options):
        def call(*given, **named):
            return body(*tf.nest.map_structure(tf.convert_to_tensor, given), **named)

        call.get_concrete_function = traced(body, **options).get_concrete_function
        return call

    monkeypatch.setattr(tf, "function", function)


@pytest.fixture
def cheap_steps(monkeypatch):
    """Takes steps that only change the weights, and learn nothing."""

    def step(loop, batch):
        for variable in loop._phase.trained:
            variable.assign_add(tf.ones_like(variable))
        return 0.5

    monkeypatch.setattr(Loop, "_take_step", step)
