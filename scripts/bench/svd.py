"""Times the truncated SVD against LAPACK's full one, and compares its error with the optimum.

scripts/benchmark svd --sizes 1024x1024 25088x4096 --rank 64
"""

import argparse
import sys
import time

import numpy as np

from exporter.lowrank.linalg.svd import truncated_svd

SIZES = ("1024x1024", "2048x2048", "4096x4096", "25088x4096")
REPEATS = 5


def main():
    """Runs the benchmark and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=size, default=[size(text) for text in SIZES])
    parser.add_argument("--rank", type=int, default=64, help="default: 64")
    parser.add_argument("--spectra", nargs="+", choices=SPECTRA, default=list(SPECTRA))
    parser.add_argument(
        "--lapack-limit",
        type=int,
        default=4096,
        help="largest side of what LAPACK is timed on as well (default: 4096)",
    )
    options = parser.parse_args()
    print("| m × n | rank | spectrum | seconds | LAPACK, seconds | speed-up | error / optimum |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for m, n in options.sizes:
        for spectrum in options.spectra:
            measure(m, n, options.rank, spectrum, options.lapack_limit)
    return 0


def size(text):
    m, n = text.split("x")
    return int(m), int(n)


def noise(generator, m, n):
    """The slowest case: all singular values are of about the same size."""
    return generator.standard_normal((m, n), np.float32)


def decaying(generator, m, n):
    """Singular values 1, 1/2, 1/3, ..."""
    count = min(m, n)
    left, _ = np.linalg.qr(generator.standard_normal((m, count), np.float32))
    right, _ = np.linalg.qr(generator.standard_normal((n, count), np.float32))
    return (left / np.arange(1, count + 1, dtype=np.float32)) @ right.T


SPECTRA = {"noise": noise, "decaying": decaying}


def measure(m, n, rank, spectrum, lapack_limit):
    """Prints one row.

    The error is the norm of the difference itself, not the one that the result predicts.
    """
    matrix = SPECTRA[spectrum](np.random.default_rng(0), m, n)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = truncated_svd(matrix, rank)
        times.append(time.perf_counter() - start)
    seconds = min(times)
    lapack, speed_up = "", ""
    if max(m, n) <= lapack_limit:
        double = matrix.astype(np.float64)
        start = time.perf_counter()
        _, values, _ = np.linalg.svd(double, full_matrices=False)
        full = time.perf_counter() - start
        lapack, speed_up = f"{full:.2f}", f"{full / seconds:.0f}"
    else:
        double = matrix.astype(np.float64)
        gram = double.T @ double if n <= m else double @ double.T
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    error = np.linalg.norm(double - (result.u * result.s) @ result.vt)
    ratio = error / np.linalg.norm(values[rank:])
    print(
        f"| {m} × {n} | {rank} | {spectrum} | {seconds:.3f} | {lapack} | {speed_up} "
        f"| {ratio:.6f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
