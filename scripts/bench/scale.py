"""Measures time and memory of a compression at rank 64, by the weights alone, as models grow.

Each model runs in a process of its own, so that the peak is its own. It has four square Dense
layers; one more is made of the largest layer of VGG16 alone, 25,088 x 4,096, the case in which
everything is in memory at once. Memory must stay within three times the model plus 2 GB.

    scripts/benchmark scale --millions 1 25 400
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

MILLIONS = (1, 5, 25, 100, 400)
LAYERS = 4
VGG16 = (25_088, 4_096)


def main():
    """Runs the benchmark and prints a Markdown table; fails where memory is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", nargs="+", type=int, default=list(MILLIONS))
    parser.add_argument("--rank", type=int, default=64, help="default: 64")
    parser.add_argument("--child", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.rank)))
        return 0
    widths = {
        f"{m} million": [round((m * 1e6 / LAYERS) ** 0.5)] * (LAYERS + 1) for m in options.millions
    }
    widths["VGG16's largest"] = list(VGG16)
    print(
        "| model | params | seconds | ns/param | model, GB | peak, GB | growth / model | of limit |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    exceeded = False
    for name, sizes in widths.items():
        command = [sys.executable, "-P", __file__, f"--rank={options.rank}", "--child"]
        done = subprocess.run(
            [*command, *map(str, sizes)], capture_output=True, text=True, check=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        size, peak = 4 * result["params"], result["peak"]
        limit = 3 * size + 2e9
        exceeded |= peak > limit
        cells = [
            name,
            f"{result['params']:,}",
            f"{result['seconds']:.2f}",
            f"{result['seconds'] / result['params'] * 1e9:.0f}",
            f"{size / 1e9:.3f}",
            f"{peak / 1e9:.2f}",
            f"{(peak - result['before']) / size:.2f}",
            f"{peak / limit:.0%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 1 if exceeded else 0


def measure(sizes, rank):
    """Compresses one model.

    Args:
        sizes: Of its input and of each layer.
        rank: Of every layer.

    Returns:
        Parameters, seconds, and bytes resident: at the most, and once the model was there.
    """
    import keras

    import exporter

    layers = [keras.layers.Dense(size, activation="relu") for size in sizes[1:]]
    model = keras.Sequential([keras.Input((sizes[0],)), *layers])
    # Drawing the weights took more memory than the model; Linux forgets that peak on request.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    start = time.perf_counter()
    exporter.compress(model, rank=rank)
    seconds = time.perf_counter() - start
    # Linux counts in kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"params": model.count_params(), "seconds": seconds, "before": before, "peak": peak}


def resident():
    """Returns the bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
