"""Compresses, exports and verifies the architectures of keras.applications, random weights.

Each runs in a process of its own, so that time and memory are its own. The moving statistics of
batch normalisations are set by a batch of noise: with those of a fresh model, some architectures
return the same for every input.

    scripts/benchmark applications --rank 0.25 MobileNetV2 ResNet50
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

ARCHITECTURES = (
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "InceptionV3",
    "Xception",
    "VGG16",
    "NASNetMobile",
    "ConvNeXtTiny",
)
SIZES = {
    "InceptionV3": (299, 299, 3),
    "Xception": (299, 299, 3),
    # Its grouped convolutions are naive loops on a CPU, in Keras: seconds a sample at 224 x 224.
    "ConvNeXtTiny": (64, 64, 3),
}
FORMATS = ("saved_model", "tflite", "onnx")


def main() -> int:
    """Runs the benchmark and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--rank", default="0.25", help="as for exporter (default: 0.25)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.architectures[0], options.rank)))
        return 0
    print(
        "| architecture | params | compressed | " + " | ".join(FORMATS) + " | seconds | peak GB |"
    )
    print("|---|---:|---:|" + "---|" * len(FORMATS) + "---:|---:|")
    failed = 0
    for name in options.architectures:
        command = [sys.executable, "-P", __file__, "--child", f"--rank={options.rank}", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2]
            print(f"| {name} | died with {done.returncode}: {reason} |", flush=True)
            failed += 1
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        verdicts = [result["verdicts"][fmt] for fmt in FORMATS]
        failed += verdicts != ["passed"] * len(FORMATS)
        cells = [
            name,
            f"{result['before']:,}",
            f"{result['after']:,}",
            *verdicts,
            f"{result['seconds']:.0f}",
            f"{result['peak'] / 1e9:.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 1 if failed else 0


def measure(name: str, rank: str) -> dict[str, object]:
    """Carries out a whole run on one architecture.

    Args:
        name: In ``keras.applications``.
        rank: As on the command line.
    """
    import keras
    import numpy as np

    import exporter
    from exporter.options.rank import parse_rank

    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=SIZES.get(name, (224, 224, 3)))
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    # What the model takes is 0 to 255 if it rescales by itself, as the verification will.
    rescales = any(isinstance(x, keras.layers.Rescaling) for x in model.layers)
    noise = np.random.default_rng(0).uniform(0, 255 if rescales else 1, (8, *model.input_shape[1:]))
    model(noise.astype(np.float32), training=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recipe = exporter.Recipe(
            rank=parse_rank(rank), data="none", formats=("all",), output=f"{folder}/run"
        )
        report = exporter.run(recipe, model=model)
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "before": report.before.params,
        "after": report.after.params,
        "seconds": time.perf_counter() - start,
        "peak": peak * 1024,
        "verdicts": {item.format: verdict(report, item) for item in report.artifacts},
    }


def verdict(report: object, item: object) -> str:
    """Says in a few words what became of one artifact."""
    if item.error:
        return f"not converted: {item.error}"
    if item.accepted:
        return "passed"
    conversion = item.conversion
    if conversion.error:
        return f"cannot be run: {conversion.error}"
    parts = []
    if not conversion.parity.passed:
        worst = max(conversion.parity.comparisons, key=lambda c: c.strain)
        kinds = sorted({fault.kind for fault in conversion.parity.faults})
        parts.append(
            f"parity {worst.strain:.1f} × tolerance ({worst.backend}, {worst.probe}) {kinds}"
        )
    structure = conversion.structure
    if not structure.passed:
        missing = [proof.layer for proof in structure.layers if not proof.found]
        dense = [proof.layer for proof in structure.layers if not proof.dense_gone]
        parts.append(
            f"structure: missing {missing}, dense {dense}, weights {structure.stored_bytes:,} "
            f"bytes, {structure.predicted_bytes:,} planned, file {structure.file_bytes:,}"
        )
    if not report.compression.passed:
        parts.append("compression collapsed")
    return "FAILED: " + "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
