"""Compares the official models of MLPerf Tiny with what the exporter makes of them, in int8.

Each network has three files: the official one, the uncompressed network as the exporter quantizes
it (``--rank none``), and a low-rank one with a part of the parameters. Costs are those of one call:
MACs and the arena of TensorFlow Lite Micro, instructions on ARM64 (if ``scripts/arm64`` was run),
and time on this machine, the files of a network in turns. Outputs are compared with the Keras
model's: the accuracy where there are labelled test data, else top-1 agreement and SNR about the
mean, in units of the output.

The folder has ``mlperf_tiny/`` with the official files and, for the ResNet, ``cifar10-jpeg.tar.xz``
with folders of images by part and class.

    scripts/benchmark tiny --data DIR --part 50%
"""

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

import exporter
from exporter.data import in_memory
from exporter.errors import ConversionError, ExporterError, RecipeError
from exporter.formats import FORMATS
from exporter.graph.fitting import fit_both
from exporter.graph.loading import load_model
from exporter.graph.network import Network
from exporter.options.groups import Source
from exporter.targets import TARGETS
from exporter.targets.base import Subject

NETWORKS = {
    "resnet": ("pretrainedResnet.h5", "pretrainedResnet_quant.tflite"),
    "wake word": ("str_ww_ref_model.h5", "str_ww_ref_model.tflite"),
    "person": ("vww_96.h5", "vww_96_int8.tflite"),
    "anomaly": ("ad01.h5", "ad01_int8.tflite"),
}

NOISE_SAMPLES = 256

TIMED_CALLS, ROUNDS = 200, 5

COLUMNS = (
    "network",
    "file",
    "bytes",
    "k MACs",
    "arena, bytes",
    "A76, k instr.",
    "A53, k instr.",
    "here, µs",
    "accuracy",
    "agreement",
    "SNR, dB",
)


def main():
    """Prints a Markdown table; fails where a run of the exporter does not pass."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, type=Path, help="the folder")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--part", default="50%", help="of the parameters (default: 50%%)")
    parser.add_argument("--finetune", type=int, default=0, help="epochs, where there are labels")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) - 2)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        results = [compare(name, options, Path(scratch)) for name in options.networks]
    return 0 if all(results) else 1


def compare(name, options, scratch):
    """Prints the rows of one network; tells whether all runs passed."""
    model_file, official = (options.data / "mlperf_tiny" / file for file in NETWORKS[name])
    model = Network.of(load_model(model_file))
    data, x, y = data_of(name, options.data, model, scratch)
    files, passed = {"official int8": official}, True
    labelled = y is not None
    for label, goal in {
        "whole": {"rank": "none"},
        f"{options.part} of the parameters": {
            "max_params": options.part,
            "finetune": options.finetune if labelled else 0,
        },
    }.items():
        output = scratch / f"{name} {label}"
        recipe = exporter.Recipe(
            model=str(model_file), quantize=("int8",), scale="none", output=str(output), **goal
        )
        try:
            report = exporter.run(recipe, dataset=data)
        except ExporterError as error:
            print(f"{name}, {label}: {error}", file=sys.stderr)
            passed = False
            continue
        (artifact,) = report.artifacts
        passed &= artifact.accepted
        files[label] = artifact.artifact.path
    times = dict(zip(files, timed(list(files.values()), x[:1]), strict=True))
    expected = next(iter(model.runner()({model.inputs[0].name: x}).values()))
    for label, file in files.items():
        own = outputs_of(file, x)
        same = np.mean(own.argmax(-1) == expected.argmax(-1))
        cells = [
            *(name, label, f"{file.stat().st_size:,}"),
            *costs(Subject(file, model)),
            f"{times[label] * 1e6:,.1f}",
            f"{np.mean(own.argmax(-1) == y):.2%}" if labelled else "",
            "" if name == "anomaly" else f"{same:.2%}",
            f"{snr(expected, own):.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return passed


def data_of(name, folder, model, scratch):
    """Returns data for a run, and test inputs with labels, or with None."""
    shape = model.inputs[0].shape[1:]
    if name == "resnet":
        images = scratch / "cifar10"
        with tarfile.open(folder / "cifar10-jpeg.tar.xz") as archive:
            archive.extractall(images, filter="data")
        _, fit = fit_both(model, str(images), Source(scale="none"))
        (x,), (y,) = (in_memory(arrays).values() for arrays in (fit.test.inputs, fit.test.labels))
        return str(images), x.astype(np.float32), y
    if name == "wake word":
        with np.load(folder / "mlperf_tiny" / "str_ww_calibration_samples.npz") as loaded:
            x = loaded["specs"].astype(np.float32)
    elif name == "person":
        x = np.random.default_rng(0).random((NOISE_SAMPLES, *shape), np.float32)
    else:
        x = as_normalized(model.model)
    return {"x": x}, x, None


def as_normalized(model):
    """Makes noise that the first batch normalisation sees with the statistics that it has stored.

    Spectra as the network was trained on are not at hand.
    """
    dense = next(layer for layer in model.layers if layer.weights)
    kernel, bias = dense.get_weights()
    _, _, mean, variance = model.layers[model.layers.index(dense) + 1].get_weights()
    noise = np.random.default_rng(0).normal(size=(NOISE_SAMPLES, len(mean)))
    after = mean + np.sqrt(variance) * noise
    return ((after - bias) @ np.linalg.pinv(kernel)).astype(np.float32)


def costs(subject):
    """Returns the cells of MACs, arena and instructions; empty where a target is missing."""
    cells = []
    for name in ("micro", "arm64", "arm64-old"):
        try:
            TARGETS[name].check()
            detailed = name == "micro"
            (cost,) = TARGETS[name].measure(FORMATS["tflite"], [subject], {}, detailed=detailed)
        except (RecipeError, ConversionError) as error:
            print(f"{subject.path.name}, {name}: {error}", file=sys.stderr)
            cells += [""] * (2 if name == "micro" else 1)
            continue
        cells.append(f"{cost.value / 1000:,.0f}")
        if name == "micro":
            cells.append(f"{cost.figures['arena_bytes']:,}")
    return cells


def opened(file, samples):
    """Opens a file with one thread; returns it, and the tensors that it takes and gives.

    The official files have no signature, which the exporter's own runner goes by.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], [samples, *given["shape"][1:]])
    interpreter.allocate_tensors()
    return interpreter, interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def stored(detail, values):
    """Converts real numbers to the type of a tensor."""
    scale, zero_point = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    integers = np.round(values / scale) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(detail["dtype"])


def outputs_of(file, x):
    """Predicts samples one at a time, as a device does."""
    interpreter, given, taken = opened(file, 1)
    scale, zero_point = taken["quantization"]
    found = []
    for sample in x:
        interpreter.set_tensor(given["index"], stored(given, sample[None]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(taken["index"])[0].astype(np.float32))
    outputs = np.stack(found)
    return scale * (outputs - zero_point) if scale else outputs


def timed(files, sample):
    """Returns the median seconds of a call of each file, taken in turns."""
    calls, times = [], [[] for _ in files]
    for file in files:
        interpreter, given, _ = opened(file, 1)
        interpreter.set_tensor(given["index"], stored(given, sample))
        calls.append(interpreter.invoke)
    for _ in range(ROUNDS):
        for call, own in zip(calls, times, strict=True):
            for _ in range(TIMED_CALLS):
                start = time.perf_counter()
                call()
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def snr(expected, actual):
    """Returns the ratio of the variance of each output to its mean squared error, in decibels."""
    error = np.mean((actual - expected) ** 2)
    return 10 * np.log10(np.mean(np.var(expected, axis=0)) / max(error, 1e-30))


if __name__ == "__main__":
    sys.exit(main())
