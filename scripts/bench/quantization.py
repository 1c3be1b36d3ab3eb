"""Compares quantized artifacts with those of the plain converter, on the same model.

    scripts/benchmark quantization --data fashion_mnist.npz [--epochs 15 --networks mlp cnn]

The network is trained, cut at rank 20 (the convolutional one at a quarter of its parameters) and
fine-tuned, once; it is kept in ``artifacts/bench/``. Its logits are compared, not its softmax. The
plain converter is ``tf.lite.TFLiteConverter`` with its defaults. Latencies are of LiteRT, one
thread, batch 1, each in turns with the one that it is compared with.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.card import ModelCard
from exporter.commands.artifact import ArtifactWriter, quantization_samples
from exporter.commands.compress import compress
from exporter.commands.finetune import finetune
from exporter.data import Dataset, load_dataset
from exporter.data.metrics import snr_db
from exporter.formats import FORMATS
from exporter.graph.conversion import serving_module
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.graph.signature import Signature
from exporter.lowrank.engine import Compressed
from exporter.lowrank.ranks.policy import RankPlan
from exporter.recipe import Recipe
from exporter.targets.latency import measure_latency
from exporter.training.reference import reference_mlp

FOLDER = Path(__file__).resolve().parents[2] / "artifacts" / "bench"

RANKS = {"mlp": 20, "cnn": 0.25}
TRAINING_EPOCHS = {"mlp": 10, "cnn": 10}
TRAINING_BATCH = {"mlp": 5000, "cnn": 128}
VARIANTS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")

LIMITS = {
    "mlp": {
        ("dynamic", "bytes"): 238_000,
        ("dynamic", "snr"): 38.0,
        ("dynamic", "agreement"): 0.997,
        ("dynamic", "faster"): 30.0,
        ("dynamic", "faster_than_dynamic"): 4.0,
        ("int8", "bytes"): 240_000,
        ("int8", "agreement"): 0.98,
        ("int8", "drop"): 0.0015,
        ("int8", "faster"): 30.0,
        ("int8", "faster_than_dynamic"): 4.0,
    },
    "cnn": {
        ("dynamic", "bytes"): 55_000,
        ("dynamic", "snr"): 40.0,
        ("dynamic", "agreement"): 0.99,
        ("dynamic", "faster"): 5.0,
        ("dynamic", "faster_than_dynamic"): 1.5,
        ("int8", "bytes"): 48_000,
        ("int8", "snr"): 31.5,
        ("int8", "agreement"): 0.955,
        ("int8", "drop"): 0.01,
        ("int8", "faster"): 6.0,
        ("int8", "faster_than_dynamic"): 1.7,
    },
}
"""Bytes and loss of accuracy at the most, the others at the least.

Those of the second network are what was measured, rounded.
"""


@dataclass(frozen=True)
class Row:
    """What became of a variant.

    Attributes:
        size: Bytes.
        snr: Of the logits, in decibels.
        agreement: With the float model, 0 to 1.
        accuracy: On the test data, 0 to 1.
        faster: Than the float32 baseline.
        faster_than_dynamic: Than the baseline in dynamic range.
    """

    size: int
    snr: float
    agreement: float
    accuracy: float
    faster: float
    faster_than_dynamic: float


def main() -> int:
    """Prints one table a network, and what of the limits held."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark quantization")
    parser.add_argument("--data", default="fashion_mnist", help="as for exporter")
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--networks", nargs="+", choices=list(RANKS), default=list(RANKS))
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    held = True
    for network in options.networks:
        held = judged(network, *measured(network, options)) and held
    return 0 if held else 1


def measured(network: str, options: argparse.Namespace) -> tuple[dict[str, Row], float]:
    baseline, compressed, data = models(network, options)
    float_model = compressed.model
    samples = {info.name: data.test.inputs[info.name] for info in Signature(float_model).inputs}
    (labels,), (task,) = data.test.labels.values(), data.tasks.values()
    (expected,) = Network(float_model).runner()(samples).values()
    float_accuracy = task.metric(expected, labels).value
    (before,) = Network(baseline).runner()(samples).values()
    print(
        f"\n{network}: baseline {task.metric(before, labels).value:.2%}, rank {RANKS[network]} "
        f"fine-tuned {float_accuracy:.2%}\n"
    )
    print(
        "| variant | by | bytes | SNR | agreement | accuracy | faster than float32 baseline "
        "| than dynamic baseline |\n|---|---|---:|---:|---:|---:|---:|---:|"
    )
    tflite = FORMATS["tflite"]
    rows = {}
    with tempfile.TemporaryDirectory(prefix="exporter-bench-") as name:
        folder = Path(name)
        baselines = [folder / "baseline.tflite", folder / "baseline-dynamic.tflite"]
        whole = Compressed(Network(baseline), RankPlan(()), {})
        ours(whole, "float32", baselines[0], data)
        plain(whole, "dynamic", baselines[1], data)
        one = {key: array[:1] for key, array in samples.items()}
        for variant in VARIANTS:
            for label, write in (("exporter", ours), ("plain converter", plain)):
                if label != "exporter" and variant not in PLAIN:
                    continue
                path = folder / f"{label.split()[0]}-{variant}.tflite"
                write(compressed, variant, path, data)
                (actual,) = tflite.load(path, tflite.backends[0])(samples).values()
                *others, own = measure_latency(tflite, [*baselines, path], one, folder)
                speedups = [other.p50 / own.p50 for other in others]
                row = Row(
                    path.stat().st_size,
                    snr_db(centred(actual), centred(expected)),
                    task.agreement(actual, expected),
                    task.metric(actual, labels).value,
                    *speedups,
                )
                print(
                    f"| {variant} | {label} | {row.size:,} | {row.snr:.1f} dB | "
                    f"{row.agreement:.2%} | {row.accuracy:.2%} | {row.faster:.1f}x | "
                    f"{row.faster_than_dynamic:.1f}x |",
                    flush=True,
                )
                if label == "exporter":
                    rows[variant] = row
    return rows, float_accuracy


def centred(logits: Any) -> Any:
    return logits - logits.mean(axis=-1, keepdims=True)


def ours(compressed: Compressed, variant: str, path: Path, data: Dataset) -> None:
    """Exports as the command line does."""
    recipe = Recipe(quantize=("none" if variant == "float32" else variant,))
    fmt, samples = FORMATS["tflite"], quantization_samples(recipe, compressed.network, data)
    writer = ArtifactWriter(recipe, compressed, samples, ModelCard())
    with tempfile.TemporaryDirectory(prefix="exporter-bench-") as scratch:
        writer.write(fmt, variant, path, Path(scratch))


def plain(compressed: Compressed, variant: str, path: Path, data: Dataset) -> None:
    """Exports by TensorFlow's converter, as its documentation says."""
    import tensorflow as tf

    module, function = serving_module(compressed.network.signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    PLAIN[variant](tf, converter, data)
    path.write_bytes(converter.convert())


def _float16(tf: Any, converter: Any, data: Dataset) -> None:
    del data
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(tf: Any, converter: Any, data: Dataset) -> None:
    del data
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(tf: Any, converter: Any, data: Dataset) -> None:
    (images,) = data.train.inputs.values()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images[:500])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


PLAIN: dict[str, Callable[[Any, Any, Dataset], None]] = {
    "float32": lambda tf, converter, data: None,
    "float16": _float16,
    "dynamic": _dynamic,
    "int8": _int8,
}


def models(network: str, options: argparse.Namespace) -> tuple[Any, Compressed, Dataset]:
    """Returns a baseline and its fine-tuned compressed model, both with logits, and the data."""
    import keras

    keras.utils.set_random_seed(0)
    baseline = reference_mlp((28, 28), 10) if network == "mlp" else convolutional()
    data = fitted(load_dataset(options.data), Network(baseline))
    files = [FOLDER / f"quantization-{network}-{options.epochs}{s}.keras" for s in ("", "-cut")]
    if not all(file.exists() for file in files):
        (x,), (y,) = data.train.inputs.values(), data.train.labels.values()
        # To compile it by XLA would take longer than to train it.
        baseline.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        epochs, batch = TRAINING_EPOCHS[network], TRAINING_BATCH[network]
        baseline.fit(x, y, epochs=epochs, batch_size=batch, verbose=0)
        cut = {"rank": RANKS[network], "calibration": 2000}
        compressed = compress(baseline, data=data, **cut)
        finetune(compressed, baseline, data=data, epochs=options.epochs, **cut)
        baseline.save(files[0])
        compressed.model.save(files[1])
    baseline, tuned = (keras.models.load_model(file, compile=False) for file in files)
    # A file knows nothing of factors.
    compressed = compress(baseline, rank=RANKS[network], method="svd")
    compressed.model.set_weights(tuned.get_weights())
    for model in (baseline, compressed.model):
        model.layers[-1].activation = keras.activations.linear
    return baseline, compressed, data


def convolutional() -> Any:
    """A small network of plain convolutions."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu", padding="same"),
            layers.Conv2D(64, 3, activation="relu", padding="same", strides=2),
            layers.Conv2D(64, 3, activation="relu", padding="same"),
            layers.Conv2D(128, 3, activation="relu", padding="same", strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="small_cnn",
    )


def judged(network: str, rows: dict[str, Row], float_accuracy: float) -> bool:
    held = True
    for (variant, name), limit in LIMITS[network].items():
        row = rows[variant]
        if name == "bytes":
            reached = row.size <= limit
        elif name == "drop":
            reached = float_accuracy - row.accuracy <= limit
        else:
            reached = getattr(row, name) >= limit
        print(f"- {'held' if reached else 'MISSED'}: {variant}, {name} {limit}")
        held = held and bool(reached)
    return held


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    sys.exit(main())
