"""Cuts, fine-tunes and quantizes baselines that were trained in ten ways.

The reference MLP is trained on Fashion-MNIST for a shorter or longer time, with fewer units, with
weight decay, dropout or batch normalisation, and from other seeds. A cut must be well conditioned
on all of them. The table has, of the layers of each: the least energy that the cut discards, the
least ratio of it to the optimum where each layer is cut by itself (on the same samples, less than
one cannot be true), and the largest entry of a factor over its root mean square. Then come the
accuracy of the baseline, of the cut and after fine-tuning, and how often the int8 file agrees with
its own float model, beside the same figure of the uncompressed network. The last rows are the worst
and the median.

    scripts/benchmark baselines --data fashion_mnist.npz --samples 20000 --finetune 6
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import exporter
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine

BASELINES = {
    "plain, 5 epochs": {},
    "another seed": {"seed": 1},
    "1 epoch": {"epochs": 1},
    "20 epochs": {"epochs": 20},
    "256 units": {"units": 256},
    "512 units, 3 layers": {"units": 512, "layers": 3},
    "weight decay 1e-4": {"decay": 1e-4},
    "dropout 0.3": {"dropout": 0.3},
    "batch normalisation": {"normalized": True},
    "learning rate 5e-3": {"rate": 5e-3},
}

SAMPLING_ERROR = 0.05
"""Part by which an error on the quarter of the samples that is held out may be below its mean."""

COLUMNS = (
    "baseline",
    "least discarded",
    "to optimum",
    "entry / RMS",
    "accuracy",
    "cut",
    "tuned",
    "int8 agreement",
    "whole int8",
)


def main():
    """Prints a Markdown table; fails where an error is below its optimum."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="an .npz file of images and classes")
    parser.add_argument("--samples", type=int, default=20_000, help="to train on (default: 20000)")
    parser.add_argument("--rank", type=int, default=20, help="default: 20")
    parser.add_argument("--finetune", type=int, default=6, help="epochs (default: 6)")
    options = parser.parse_args()
    with np.load(options.data) as loaded:
        arrays = {name: loaded[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    arrays |= {name: arrays[name] / np.float32(255) for name in ("x_train", "x_test")}
    arrays |= {name: arrays[name][: options.samples] for name in ("x_train", "y_train")}
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}", flush=True)
    rows = []
    for name, ways in BASELINES.items():
        rows.append(measured(trained(arrays, **ways), arrays, options))
        show(name, rows[-1])
    columns = list(zip(*rows, strict=True))
    # Of the size of entries, the largest is the worst.
    show("worst", [max(c) if n == 2 else min(c) for n, c in enumerate(columns)])
    show("median", [statistics.median(column) for column in columns])
    return 0 if min(columns[1]) >= 1 - SAMPLING_ERROR else 1


def show(name, figures):
    """Prints a row."""
    discarded, ratio, entry, *parts = figures
    cells = [f"{discarded:.2g}", f"{ratio:.3f}", f"{entry:.1f}", *(f"{part:.2%}" for part in parts)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def trained(
    arrays,
    *,
    seed=0,
    epochs=5,
    units=1024,
    layers=5,
    decay=0.0,
    dropout=0.0,
    normalized=False,
    rate=1e-3,
):
    """Trains an MLP."""
    keras.utils.set_random_seed(seed)
    parts = [keras.Input((28, 28)), keras.layers.Flatten()]
    for _ in range(layers):
        parts.append(keras.layers.Dense(units, use_bias=not normalized))
        parts += [keras.layers.BatchNormalization()] if normalized else []
        parts.append(keras.layers.ReLU())
        parts += [keras.layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([*parts, keras.layers.Dense(10, activation="softmax")])
    optimizer = keras.optimizers.AdamW(rate, weight_decay=decay)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(arrays["x_train"], arrays["y_train"], batch_size=256, epochs=epochs, verbose=0)
    return model


def measured(model, arrays, options):
    """Returns the figures of one baseline."""
    recipe = {"scale": "none", "quantize": ("int8",), "force": True}
    rank, data = options.rank, exporter.load_dataset(arrays)
    with tempfile.TemporaryDirectory() as folder:
        plain = exporter.Recipe(rank="none", output=f"{folder}/plain", **recipe)
        tuned = exporter.Recipe(
            rank=rank, finetune=options.finetune, output=f"{folder}/tuned", **recipe
        )
        reports = [exporter.run(each, model=model, dataset=data) for each in (plain, tuned)]
        compressed = keras.saving.load_model(Path(folder) / "tuned" / "compressed.keras")
    network = Network(model)
    fit = fitted(data, network)
    engine = Engine(network, calibration_from(network, fit, 10_000))
    discarded, ratios = [], []
    cut = exporter.compress(model, rank, data=data, scale="none")
    for name, factors in cut.factors.items():
        curve = engine.curves[name]
        discarded.append(factors.discarded_energy)
        ratios.append(factors.discarded_energy / (curve[rank] / curve[0]))
    thin = [w.numpy() for w in compressed.weights if len(w.shape) == 2 and rank in w.shape]
    entry = max(float(np.abs(w).max() / np.sqrt(np.mean(w**2))) for w in thin)
    test = next(iter(fit.test.inputs.values())), next(iter(fit.test.labels.values()))
    accuracies = [accuracy(each, *test) for each in (model, cut.model, compressed)]
    agreements = [agreement(report) for report in reversed(reports)]
    return min(discarded), min(ratios), entry, *accuracies, *agreements


def accuracy(model, x, y):
    """Returns the accuracy on test data."""
    return float(np.mean(model.predict(x, verbose=0, batch_size=1000).argmax(-1) == y))


def agreement(report):
    """Returns how often the int8 artifact of a run agrees with its own float model."""
    (artifact,) = report.artifacts
    return min(output.top1_agreement for output in artifact.conversion.quality.outputs)


if __name__ == "__main__":
    sys.exit(main())
