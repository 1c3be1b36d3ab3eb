"""One worker of a cluster, or one process alone: trains small models and saves their weights.

Run as a process: ``python worker.py OPTIONS`` with OPTIONS as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from exporter.data import load_dataset
from exporter.graph.network import Network
from exporter.options.groups import Tuning
from exporter.training.distribution import is_chief, strategy_for


def main():
    options = json.loads(sys.argv[1])
    if options.get("devices"):
        import tensorflow as tf

        (processor,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * options["devices"]
        tf.config.set_logical_device_configuration(processor, parts)
    # TensorFlow asks for the strategy before anything else.
    strategy = strategy_for(options["distribute"])
    import keras
    from keras import layers

    from exporter.graph.fitting import fitted
    from exporter.lowrank.engine import Engine
    from exporter.lowrank.ranks.policy import FixedRank
    from exporter.options.groups import Cut
    from exporter.progress import Silent
    from exporter.training import loop
    from exporter.training.finetune import FineTuner

    loop.CHECKPOINT_SECONDS = -1.0
    if options.get("dies_at"):
        take = loop.Loop._take_step

        def taking(self, batch):
            if self._at.total_steps == options["dies_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return take(self, batch)

        loop.Loop._take_step = taking
    for train in options["trains"]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((12,), name="features"),
                layers.Dense(32, activation="relu", name="hidden"),
                layers.Dense(3, activation="softmax", name="classes"),
            ]
        )
        if not is_chief(strategy):
            # What a worker starts from must not matter.
            model.layers[0].kernel.assign(model.layers[0].kernel * 2)
        rng = np.random.default_rng(0)
        # Large enough for gradients to be clipped.
        x = rng.normal(scale=5.0, size=(250, 12))
        data = fitted(load_dataset({"x": x, "y": (x[:, :3].argmax(axis=1))}), Network(model))
        tuning = Tuning(
            finetune=4,
            batch_size=32,
            learning_rate=0.01,
            distill=0.0,
            train=train,
        )
        engine = Engine(Network(model), None, Cut(method="svd"))
        tuner = FineTuner(
            engine,
            data,
            tuning,
            strategy=strategy,
            progress=Silent(),
            checkpoints=options["checkpoints"] and Path(options["checkpoints"]),
        )
        tuned = tuner.run(engine.factorize(engine.plan(FixedRank(3))))
        weights = [weight.numpy() for weight in tuned.compressed.model.weights]
        np.savez(options["output"].format(train), *weights, replicas=strategy.num_replicas_in_sync)


if __name__ == "__main__":
    main()
