"""Plants faults in exported files, and counts those that verification catches.

Networks are trained briefly on the embedded digits, cut, and exported in all variants; with
``--data``, the ResNet and the wake word of MLPerf Tiny and a baseline for Fashion-MNIST join them.
A fault is severe if the file agrees with the Keras model in at least a point fewer of the classes
than without it, or loses a point of accuracy, or does not run; noticeable if it is not severe and
the power of the error is at least fourfold (6 dB). Others are harmless, and are not counted. Clean
files that are refused are false alarms, unless rounding alone costs them so much that they miss the
limits of their variant: values with too much noise, or an output that is constant. Clean files of
untrained networks, whose scores are nearly ties, are counted among them. Files in float,
which have fewer places for faults, get several faults of a kind.

    scripts/benchmark detection [--data DIR] [--seeds 2] [--untrained 5]
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

import exporter
from exporter.card import ModelCard
from exporter.commands.artifact import ArtifactWriter, quantization_samples
from exporter.formats import FORMATS
from exporter.formats.base import describe
from exporter.graph.fitting import fit_both
from exporter.graph.loading import load_model
from exporter.graph.network import Network
from exporter.recipe import Recipe
from exporter.verification.parity import CONSTANT
from exporter.verification.verifier import Verifier
from scripts.bench.lib.faults import faults

SEVERE, NOTICEABLE, HARMLESS = "severe", "noticeable", "harmless"
POINT = 0.01
SIX_DB = 6.0
GOALS = {("float", SEVERE): 1.0, ("quantized", SEVERE): 0.99, ("quantized", NOTICEABLE): 0.9}
VARIANTS = {
    "tflite": ("float32", "float16", "dynamic", "int8", "int16x8", "int4"),
    "onnx": ("float32", "float16", "dynamic", "int8"),
}
EPOCHS = 3
FLOAT_SEEDS = 3
"""Times as many faults of a kind in files in float as in quantized ones."""


def main():
    """Prints Markdown tables; fails where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with more networks")
    parser.add_argument("--seeds", type=int, default=1, help="places of each fault (default: 1)")
    parser.add_argument(
        "--untrained", type=int, default=4, help="untrained copies of each network (default: 4)"
    )
    parser.add_argument("--networks", nargs="+")
    options = parser.parse_args()
    counts, missed, alarms, costly, clean = Counter(), [], [], [], 0
    start = time.perf_counter()
    for name, model, data, seeds in networks(options):
        with tempfile.TemporaryDirectory() as folder:
            for kind, label, verdict in trials(name, model, data, Path(folder), seeds):
                if kind == "clean":
                    clean += 1
                    if not verdict.passed:
                        kept = costly if is_costly(verdict) else alarms
                        kept.append(f"{label}: {reason(verdict)}")
                    continue
                group, severity = kind
                counts[group, severity, verdict.passed] += 1
                if verdict.passed and severity != HARMLESS:
                    missed.append(f"{severity}: {label}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return show(counts, missed, alarms, costly, clean)


def show(counts, missed, alarms, costly, clean):
    """Prints the tables; returns the exit code."""
    failed = bool(alarms)
    print("| artifacts | faults | planted | caught | part | goal |\n|---|---|---:|---:|---:|---:|")
    for group in ("float", "quantized"):
        for severity in (SEVERE, NOTICEABLE, HARMLESS):
            caught, passed = (counts[group, severity, passed] for passed in (False, True))
            part = caught / max(1, caught + passed)
            goal = GOALS.get((group, severity))
            failed |= goal is not None and part < goal
            shown = "" if goal is None else f"{goal:.0%}"
            planted = caught + passed
            print(f"| {group} | {severity} | {planted} | {caught} | {part:.1%} | {shown} |")
    print(f"\nClean files: {clean}; false alarms: {len(alarms)}; too costly: {len(costly)}.\n")
    for told, labels in (("false alarm", alarms), ("too costly", costly), ("missed", missed)):
        for label in labels:
            print(f"- {told}: {label}")
    return 1 if failed else 0


def trials(name, model, data, folder, seeds):
    """Yields what was planted (``clean`` or group and severity), a label, and the verdict."""
    network, dataset = fit_both(Network.of(model), data, Recipe().source)
    rank = 20 if name == "fashion" else 0.5
    compressed = exporter.compress(network.model, rank=rank, data=data)
    scratch = folder / "scratch"
    scratch.mkdir()
    verifier = Verifier(compressed, dataset, folder=scratch)
    for format_name, variants in VARIANTS.items():
        fmt = FORMATS[format_name]
        recipe = Recipe(formats=(format_name,), quantize=variants[2:])
        samples = quantization_samples(recipe, compressed.network, dataset)
        writer = ArtifactWriter(recipe, compressed, samples, ModelCard())
        for variant in variants:
            path = folder / f"{variant}{fmt.suffix}"
            writer.write(fmt, variant, path, scratch)
            artifact = describe(fmt, variant, path, compressed.network)
            own, label = verifier.verify(artifact), f"{name} {format_name} {variant}"
            yield "clean", label, own
            group = "float" if fmt.variant(variant).rule is None else "quantized"
            for seed in range(seeds * (FLOAT_SEEDS if group == "float" else 1)):
                for fault, broken in faults(fmt.suffix, path.read_bytes(), seed):
                    other = folder / f"broken{fmt.suffix}"
                    other.write_bytes(broken)
                    verdict = verifier.verify(replace(artifact, path=other, size=len(broken)))
                    severity = severity_of(own, verdict)
                    yield (group, severity), f"{label}: {fault} ({figures(verdict)})", verdict


def compared(verdict):
    """Returns the comparison on the first probe, in the backend that ships."""
    parts = verdict.parity.comparisons if verdict.parity else verdict.quality.outputs
    return parts[0]


def severity_of(clean, broken):
    """Tells how much a fault costs."""
    if broken.error is not None or not broken.standings:
        return SEVERE
    before, after = compared(clean), compared(broken)
    lost = [
        metric.value - broken.standings[name].metric.value
        for name, metric in clean.metrics.items()
        if metric.name == "accuracy"
    ]
    if before.top1_agreement is not None:
        lost.append(before.top1_agreement - after.top1_agreement)
    if max(lost, default=0) >= POINT:
        return SEVERE
    return NOTICEABLE if not after.snr_db > before.snr_db - SIX_DB else HARMLESS


def figures(verdict):
    """Returns the figures of a verdict in words."""
    if verdict.error is not None:
        return "did not run"
    found = compared(verdict)
    excess = getattr(found, "excess", None)
    agreement = found.top1_agreement
    return (
        f"{found.snr_db:.1f} dB"
        + ("" if agreement is None else f", {agreement:.2%}")
        + (f", excess {excess.total:.1f} dB, of a channel {excess.channel:.1f}" if excess else "")
    )


def reason(verdict):
    """Says what a clean file was refused for."""
    if verdict.error is not None:
        return verdict.error
    if verdict.quality is None:
        return "parity or structure"
    kinds = defaultdict(list)
    for output in verdict.quality.outputs:
        if not output.passed:
            excess = output.excess
            kinds["excess" if excess and not excess.passed else "limits"].append(figures(verdict))
    kinds["faults"] += [fault.kind for fault in verdict.quality.faults if not fault.in_reference]
    kinds["layers"] += [layer.layer for layer in verdict.layers if layer.departs]
    return str(dict(kinds))


def is_costly(verdict):
    """Tells whether a clean file is refused for what rounding alone costs."""
    if verdict.quality is None or any(layer.departs for layer in verdict.layers):
        return False
    limits = verdict.quality.limits
    refused = [output for output in verdict.quality.outputs if not output.passed]
    return all(fault.kind == CONSTANT for fault in verdict.quality.faults) and all(
        (output.excess is None or output.excess.passed)
        and (output.lost_channels is not None or output.snr_db < limits.snr_db)
        for output in refused
    )


def networks(options):
    """Yields names, models, data, and how many faults of a kind to plant."""
    for name, build in BUILDERS.items():
        if not options.networks or name in options.networks:
            yield name, *made(build, 0, EPOCHS), options.seeds
            for seed in range(options.untrained):
                yield f"untrained {name} {seed}", *made(build, seed, 0), 0
    if options.data:
        for name, make in STRANGERS.items():
            if not options.networks or name in options.networks:
                yield name, *make(options.data), options.seeds


def made(build, seed, epochs):
    """Trains a network on the digits; returns it, and the data."""
    import keras

    keras.utils.set_random_seed(seed)
    x, y = digits()
    model, target = build(keras.layers, keras)
    labelled = target == "class"
    model.compile("adam", "sparse_categorical_crossentropy" if labelled else "mse")
    outputs = y if labelled else x.reshape(len(x), -1)
    model.fit(x[:6000], outputs[:6000], epochs=epochs, batch_size=64, verbose=0)
    data = {"x_train": x[:6000], "x_test": x[6000:7000]}
    return model, data | ({"y_train": y[:6000], "y_test": y[6000:7000]} if labelled else {})


def digits():
    """Returns the embedded digits, from 0 to 1, with their labels."""
    parts = exporter.load_dataset("digits").parts.values()
    x, y = (
        np.concatenate([np.asarray(next(iter(getattr(p, side).values()))[:]) for p in parts])
        for side in ("inputs", "labels")
    )
    return (x.astype(np.float32) / x.max()).astype(np.float32), y


def _mlp(layers, keras):
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dense(256, activation="relu"),
            layers.Dense(256, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    ), "class"


def _cnn(layers, keras):
    x = inputs = keras.Input((28, 28))
    x = layers.Reshape((28, 28, 1))(x)
    for filters in (16, 32, 48):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(x)), "logits"


def _residual(layers, keras):
    x = inputs = keras.Input((28, 28))
    x = layers.Reshape((28, 28, 1))(x)
    x = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(x)
    for _ in range(2):
        y = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
        y = layers.Conv2D(24, 1)(y)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x)), "class"


def _tanh(layers, keras):
    x = inputs = keras.Input((28, 28))
    x = layers.Flatten()(x)
    x = layers.Dense(192, activation="tanh")(x)
    x = layers.Dense(128, activation="gelu")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x)), "class"


def _autoencoder(layers, keras):
    x = inputs = keras.Input((28, 28))
    x = layers.Flatten()(x)
    for units in (128, 32, 128):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(784)(x)), "value"


def _attention(layers, keras):
    x = inputs = keras.Input((28, 28))
    x = layers.Dense(48)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 24)(x, x))
    x = layers.Dense(64, activation="relu")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x)), "class"


BUILDERS = {
    "mlp": _mlp,
    "cnn": lambda layers, keras: (_with_softmax(_cnn(layers, keras)[0], layers, keras), "class"),
    "residual": _residual,
    "tanh": _tanh,
    "autoencoder": _autoencoder,
    "attention": _attention,
}


def _with_softmax(model, layers, keras):
    return keras.Model(model.inputs, layers.Softmax()(model.output))


def _fashion(folder):
    return load_model(folder / "fashion_baseline.keras"), str(folder / "fashion_mnist.npz")


def _wake_word(folder):
    with np.load(folder / "mlperf_tiny" / "str_ww_calibration_samples.npz") as loaded:
        x = loaded["specs"].astype(np.float32)
    model = load_model(folder / "mlperf_tiny" / "str_ww_ref_model.h5")
    # One of 45 samples would be more than a point, so 1,000 mixtures of two are tested on.
    rng = np.random.default_rng(0)
    first, second = rng.integers(len(x), size=(2, 1000))
    part = rng.random((1000, *[1] * (x.ndim - 1)), dtype=np.float32)
    return model, {"x_train": x, "x_test": part * x[first] + (1 - part) * x[second]}


STRANGERS = {"fashion": _fashion, "wake word": _wake_word}


if __name__ == "__main__":
    sys.exit(main())
